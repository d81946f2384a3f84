"""The style sheet of the report: light and dark, wide and narrow, screen and paper."""

from __future__ import annotations

__all__ = ["CSS"]

# Colours of marks and bars are those of Okabe and Ito (2008), told apart by the colour-blind; darker in
# light where the original would not stand out from white by 3 to 1.
CSS = """
:root{color-scheme:light dark;--page:#f6f7f8;--card:#fff;--ink:#171b20;--quiet:#545e69;
--line:#d5dadf;--hair:#e6e9ec;--band:#e4ebf2;--link:#0a5a94;--well:#f0f2f4;--focus:#0a5a94;
--faster:#00694a;--slower:#a94300;--equivalent:#005b91;--inconclusive:#505a65;--refused:#951751;
--waived:#765000;--on:#fff;--c1:#d55e00;--c2:#b07000;--c3:#0072b2;--c4:#2186bd;--c5:#a94f84;
--c6:#00835f;--c7:#7c7200;--c8:#626d78;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media(prefers-color-scheme:dark){
:root{--page:#101418;--card:#181d23;--ink:#e9edf1;--quiet:#a7b1bc;--line:#39424c;--hair:#2a323a;
--band:#26333f;--link:#7cc4f5;--well:#222930;--focus:#7cc4f5;--faster:#43d6a6;--slower:#ff9d61;
--equivalent:#74c5ff;--inconclusive:#b3bdc8;--refused:#ff93c3;--waived:#f0c250;--on:#101418;
--c1:#f0803a;--c2:#e69f00;--c3:#4fa3dc;--c4:#9ad5f5;--c5:#d98ab6;--c6:#2cc397;--c7:#f0e442;
--c8:#9aa5b1}
}
*{box-sizing:border-box}
html{font:16px/1.5 var(--sans);-webkit-text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0;background:var(--page);color:var(--ink);overflow-wrap:anywhere}
header,main,footer{max-width:70rem;margin:0 auto;padding:0 clamp(.8rem,3vw,2rem)}
header{padding-top:2.2rem}
footer{padding-top:1rem;padding-bottom:3rem}
h1{font-size:clamp(1.25rem,3vw,1.6rem);line-height:1.25;margin:.1rem 0 .5rem;font-weight:650}
h2{font-size:1.15rem;line-height:1.3;margin:2.6rem 0 .3rem;font-weight:650}
h3{margin:0;font-size:1rem;line-height:1.35}
p{margin:.4rem 0}
ul{margin:.3rem 0;padding-left:1.2rem}
dl,dd{margin:0}
a{color:var(--link);text-underline-offset:.2em}
code{font-family:var(--mono);font-size:.875em}
.over{font-size:.75rem;letter-spacing:.04em;color:var(--quiet);margin:0 0 .2rem;font-weight:600}
.quiet{color:var(--quiet)}
.small{font-size:.8125rem;line-height:1.4}
.lead{color:var(--quiet);margin:0 0 .8rem;max-width:60rem}
.nowhere{position:absolute;width:0;height:0}
.skip{position:absolute;left:.5rem;top:-4rem;background:var(--card);color:var(--link);
padding:.5rem .9rem;border:2px solid var(--focus);border-radius:.4rem;z-index:9}
.skip:focus{top:.5rem}
:focus-visible{outline:3px solid var(--focus);outline-offset:2px;border-radius:.25rem}
.facts{display:flex;flex-wrap:wrap;gap:.15rem 1.4rem;font-size:.8125rem}
.facts div{display:flex;flex-wrap:wrap;column-gap:.4em;min-width:0;align-items:center}
.facts dt{color:var(--quiet);flex:none}
.facts dd{min-width:0;flex:none;max-width:100%}
nav ul{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;list-style:none;margin:.7rem 0 0;
padding:.5rem 0 0;border-top:1px solid var(--line);font-size:.875rem}
nav a{display:inline-block;padding:.25rem 0}
.answer{background:var(--card);border:1px solid var(--line);border-left:.4rem solid var(--tone);
border-radius:.6rem;padding:1.1rem clamp(.9rem,3vw,1.6rem) 1.2rem;margin:.7rem 0 1.1rem;
--tone:var(--inconclusive)}
.is-faster{--tone:var(--faster)}
.is-slower{--tone:var(--slower)}
.is-equivalent{--tone:var(--equivalent)}
.is-refused{--tone:var(--refused)}
.is-waived{--tone:var(--waived)}
.badges{display:flex;flex-wrap:wrap;align-items:center;gap:.3rem .6rem;margin:0 0 .5rem}
.badge{background:var(--tone);color:var(--on);font-weight:700;text-transform:uppercase;
letter-spacing:.05em;font-size:.8125rem;padding:.18rem .65rem;border-radius:.35rem;
display:inline-flex;gap:.45em;align-items:center}
.is-hint .badge{background:none;color:var(--tone);box-shadow:inset 0 0 0 2px var(--tone)}
.is-hint{border-left-style:double}
.sign{font-weight:700}
.standing{border:1.5px solid var(--ink);border-radius:.35rem;padding:.1rem .55rem;
font-size:.8125rem;font-weight:600}
.standing-exploratory{border-style:dashed}
.standing-anecdote{border-style:dotted}
.standing .quiet{font-weight:400}
.label{background:var(--well);border-radius:.35rem;padding:.14rem .55rem;font-size:.8125rem;
margin-left:.2rem}
.sentence{font-size:clamp(1.3rem,3.6vw,1.9rem);line-height:1.2;font-weight:680;
letter-spacing:-.01em;margin:.1rem 0 .5rem;text-wrap:balance}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.9rem 1.4rem;
margin:1rem 0 .8rem;border-top:1px solid var(--hair);padding-top:.9rem}
.figures dt{font-size:.75rem;color:var(--quiet);font-weight:600}
.value{font-size:1.15rem;font-weight:620;font-variant-numeric:tabular-nums;line-height:1.25}
.big{font-size:1.6rem;color:var(--tone)}
.said{margin:0 0 .8rem;font-size:.9375rem}
.told{margin-top:.8rem}
.rule{background:var(--well);border-radius:.5rem;padding:.7rem .9rem .8rem;margin:.7rem 0}
.rule.waived{border:1.5px dashed var(--waived)}
.rule-name{margin:0 0 .35rem;display:flex;flex-wrap:wrap;gap:.3rem .6rem;align-items:baseline}
.rule-name code{font-weight:700;font-size:1rem;color:var(--refused)}
.waived .rule-name code{color:var(--waived)}
.rule-name .label{background:var(--waived);color:var(--on);font-weight:700}
.number{font-family:var(--mono);font-size:.8125rem;color:var(--quiet)}
.pairs>div,.pairs{display:grid;gap:.1rem}
.pairs>div{grid-template-columns:6.5rem 1fr;gap:.1rem .8rem}
.pairs dt{color:var(--quiet);font-size:.8125rem;padding-top:.12rem}
.command{background:var(--card);border:1px solid var(--line);border-radius:.3rem;
padding:.1rem .4rem;user-select:all;-webkit-user-select:all;-webkit-box-decoration-break:clone;
box-decoration-break:clone}
.block{display:block;white-space:pre-wrap;padding:.7rem .9rem;margin:.5rem 0;line-height:1.6}
.chart{background:var(--card);border:1px solid var(--line);border-radius:.6rem;margin:.7rem 0;
padding:1rem clamp(.7rem,2.5vw,1.4rem) 1.1rem}
figcaption{color:var(--quiet);font-size:.875rem;margin-bottom:.9rem;max-width:56rem}
figcaption strong{color:var(--ink)}
svg{display:block;overflow:visible}
svg text{font-family:var(--sans)}
.plot{width:100%;min-width:0}
.framed{display:grid;grid-template-columns:3.9rem 1fr}
.with-totals{grid-template-columns:3.9rem 1fr 4.6rem}
.with-names{grid-template-columns:3.9rem 1fr 5.4rem}
.gutter,.totals,.names{width:100%}
.tick,.end,.level-name{font-size:12px;fill:var(--quiet);font-variant-numeric:tabular-nums}
.end{font-weight:600}
.group{font-size:13px;font-weight:650;fill:var(--ink)}
.level-name{fill:var(--ink);font-weight:600}
.axis{stroke:var(--quiet)}
.grid{stroke:var(--hair)}
.strip{fill:var(--well)}
.axis-name{text-align:right;font-size:.75rem;color:var(--quiet);margin:0 0 .6rem}
.joined{stroke:var(--quiet);stroke-width:1;opacity:.55}
.level{stroke:var(--ink);stroke-width:1.3;stroke-dasharray:7 4}
.level.hollow{stroke-dasharray:2 3}
.level.dotted{stroke-dasharray:8 3 2 3}
.level.halved{stroke-dasharray:1 5}
.full{fill:currentColor;stroke:var(--card);stroke-width:.8}
.open{fill:var(--card);stroke:currentColor;stroke-width:1.9}
.stroke,.cross{fill:none;stroke:currentColor;stroke-width:1.9}
.cross{stroke-width:2.4}
.ink{color:var(--ink)}
.faint{color:var(--quiet)}
.bad{color:var(--refused)}
.pale{opacity:.45}
.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.c6{color:var(--c6)}.c7{color:var(--c7)}.c8{color:var(--c8)}
.band{fill:var(--band)}
.one{stroke:var(--ink);stroke-width:1.4}
.range{stroke-width:2.4;stroke:var(--ink)}
.range.shift{stroke:var(--quiet);stroke-width:1.4}
.forest-row{display:grid;column-gap:1rem;align-items:center;
grid-template:"label plot said"/minmax(8rem,14rem) minmax(0,1fr) 8.5rem}
.forest-label{grid-area:label}
.forest-plot{grid-area:plot}
.forest-said{grid-area:said}
.further{margin-top:1rem}
.forest-label,.forest-said{display:flex;flex-direction:column;justify-content:center;
line-height:1.3;font-size:.875rem;min-width:0}
.forest-said{text-align:right;font-variant-numeric:tabular-nums}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.3rem;padding:0;margin:.3rem 0 0;
font-size:.8125rem}
.chart>.legend{margin-top:.9rem}
.legend li{display:flex;gap:.5rem;align-items:flex-start;min-width:0}
.key{width:16px;height:16px;flex:none;margin-top:.12rem}
.key.wide{width:34px}
.legends{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:.8rem 2rem;
margin-top:.4rem}
.legends .legend{flex-direction:column}
.parts{display:grid;grid-template-columns:repeat(auto-fill,minmax(16rem,1fr))}
.part{stroke:var(--card);stroke-width:1}
.hatch{stroke:#0b0f12;stroke-opacity:.45;stroke-width:3}
.on{font-size:11.5px;fill:#0b0f12}
.on-a3,.on-p3{fill:#fff}
.inside{overflow:hidden}
.t-a1{fill:#a9c6de}.t-a2{fill:#7fb2d9}.t-a3{fill:#0072b2}.t-a4{fill:#56b4e9}.t-a5{fill:#9bd3f5}
.t-a6{fill:#7fb2d9}
.t-b1{fill:#f3cf85}.t-b2{fill:#e69f00}.t-b3{fill:#e06a10}.t-b4{fill:#f2ad7c}.t-b5{fill:#e6d93c}
.t-g1{fill:#19a67c}.t-g2{fill:#7cc9b0}.t-p1{fill:#d392b6}.t-p2{fill:#cc79a7}.t-p3{fill:#8a4379}
.t-i1{fill:#c3cad1}.t-i2{fill:#98a3ad}.t-i3{fill:#dfe3e7}.f-a1{fill:#a9c6de}.f-a3{fill:#0072b2}
.f-a5{fill:#9bd3f5}.f-b2{fill:#e69f00}.f-b3{fill:#e06a10}.f-b5{fill:#e6d93c}.f-g1{fill:#19a67c}
.f-p1{fill:#d392b6}.f-p3{fill:#8a4379}.f-i2{fill:#98a3ad}
HATCHED
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--link);font-size:.9375rem;padding:.3rem 0;width:fit-content}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem;background:var(--card);
margin:.6rem 0}
table{border-collapse:collapse;min-width:100%;width:max-content;font-size:.8125rem;line-height:1.4;overflow-wrap:normal}
caption{text-align:left;padding:.6rem .8rem .3rem;color:var(--quiet);font-weight:600}
th,td{padding:.34rem .8rem;text-align:left;vertical-align:top;border-top:1px solid var(--hair);
unicode-bidi:isolate;max-width:22rem;min-width:2.5rem;overflow-wrap:break-word}
thead th{border-top:0;color:var(--quiet);font-weight:600;white-space:nowrap;vertical-align:bottom;
max-width:16rem;overflow:hidden;text-overflow:ellipsis}
tbody th{font-weight:600}
.number{font-variant-numeric:tabular-nums}
th.number,td.number{text-align:right;white-space:nowrap;font-family:inherit;font-size:inherit}
td.number{color:inherit}
time{white-space:nowrap}
.id{display:inline-block;max-width:13ch;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;
vertical-align:bottom;user-select:all;-webkit-user-select:all}
.role{font-weight:650}
.role-refuses{color:var(--refused)}
.role-follows{color:var(--waived)}
@media(max-width:44rem){
h2{margin-top:2rem}
.forest-row{grid-template:"label said" "plot plot"/minmax(0,1fr) auto}
.forest-label,.forest-said{padding:.3rem 0 .15rem}
.pairs>div{grid-template-columns:1fr}
.pairs dt{padding-top:.3rem}
.framed{grid-template-columns:3.3rem 1fr}
.with-totals{grid-template-columns:3.3rem 1fr 4.2rem}
.with-names{grid-template-columns:3.3rem 1fr}
.names{display:none}
.figures{grid-template-columns:repeat(auto-fill,minmax(7.6rem,1fr))}
th,td{padding:.34rem .6rem}
}
@media(prefers-reduced-motion:no-preference){
html{scroll-behavior:smooth}
}
@media print{
:root{color-scheme:light}
html{font-size:11px}
body{background:#fff}
nav,.skip{display:none}
.answer,.chart,tr{break-inside:avoid}
.scroll{overflow:visible}
.id{max-width:none;white-space:normal}
details::details-content{content-visibility:visible;block-size:auto}
h2{break-after:avoid}
}
@media(forced-colors:active){
.badge,.band,.part{forced-color-adjust:none}
}
"""
