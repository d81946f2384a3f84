"""The report: one self-contained HTML file of a comparison, readable without a network."""
