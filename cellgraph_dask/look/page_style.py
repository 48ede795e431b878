"""The look of a report's page: in light and dark, on paper and on small screens."""

STYLE = """
:root {
  color-scheme: light dark;
  --back: #ffffff; --panel: #f4f6f8; --text: #1b1f24; --muted: #545d68; --line: #d3d9e0;
  --link: #0b57a4; --bar: #2f6db5; --outline: #b3541e;
  --good: #1a6b34; --bad: #b3261e; --warning: #855000; --unknown: #545d68;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14181d; --panel: #1d232a; --text: #e6e8eb; --muted: #a7b0bb; --line: #3a434d;
    --link: #8ac0ff; --bar: #6aa5e8; --outline: #f0a35e;
    --good: #6fd48f; --bad: #ff958c; --warning: #f2b866; --unknown: #a7b0bb;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: auto; }
body {
  margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 3rem; max-width: 62rem;
  background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: anywhere;
}
a { color: var(--link); }
a:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { position: static; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; padding-top: .9rem;
     border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0; max-width: 46rem; }
.lead { font-size: 1.15rem; font-weight: 600; }
.note { color: var(--muted); }
.good { --mark: var(--good); } .bad { --mark: var(--bad); }
.warning { --mark: var(--warning); } .unknown { --mark: var(--unknown); }
.lead, .mark, .answer { color: var(--mark); }
nav ul { list-style: none; margin: 1rem 0 0; padding: 0; display: flex; flex-wrap: wrap;
         gap: .25rem 1.1rem; }
.verdicts { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }
.verdicts li { display: flex; gap: .8rem; background: var(--panel); padding: .7rem .9rem;
               border-left: .3rem solid var(--mark); border-radius: .25rem; }
.mark { font-weight: 700; font-size: 1.15rem; line-height: 1.3; width: 1.2rem; flex: none;
        text-align: center; }
.verdicts p { margin: 0; }
.answer { font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem;
           margin: 1rem 0 0; }
.figures div { background: var(--panel); border-radius: .25rem; padding: .6rem .8rem; }
.figures dt { color: var(--muted); font-size: .875rem; }
.figures dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.texts li { margin: .3rem 0; }
figure { margin: .8rem 0; }
figcaption { color: var(--muted); font-size: .9rem; max-width: 46rem; }
svg { display: block; width: 100%; max-width: 48rem; height: auto; }
svg text { fill: var(--text); font-size: 13px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .bar { fill: var(--bar); }
svg .outline { fill: none; stroke: var(--outline); stroke-width: 2.5; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; padding: 0;
       margin: .3rem 0; font-size: .9rem; }
.key svg { display: inline-block; width: 1.4rem; height: .9rem; vertical-align: -.1rem;
           margin-right: .4rem; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--link); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem; }
caption { text-align: left; white-space: nowrap; color: var(--muted); padding-bottom: .3rem; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; vertical-align: top;
         border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
.long { overflow-wrap: anywhere; }
th { font-weight: 600; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; }
@media (max-width: 40rem) {
  svg text { font-size: 16px; }
  th, td { padding-right: .7rem; }
  thead .number { white-space: normal; }
}
footer { margin-top: 2.5rem; padding-top: .9rem; border-top: 1px solid var(--line);
         color: var(--muted); font-size: .9rem; }
@media print {
  :root {
    color-scheme: light;
    --back: #ffffff; --panel: #ffffff; --text: #000000; --muted: #444444; --line: #bbbbbb;
    --link: #000000; --bar: #2f6db5; --outline: #b3541e;
    --good: #1a6b34; --bad: #b3261e; --warning: #855000; --unknown: #444444;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .skip, details:not([open]) { display: none; }
  h2 { break-after: avoid; }
  figure, .verdicts li, .figures, tr { break-inside: avoid; }
  .verdicts li, .figures div { border: 1px solid var(--line); }
  svg, svg *, .verdicts li { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
