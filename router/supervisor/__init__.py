"""What runs beside the work: standard library only, Python 3.8 or later, shipped by digest."""
