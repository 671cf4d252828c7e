"""How the report looks: on a phone as on a screen, by day and by night."""

STYLE = """
:root { --ink: #17202b; --soft: #5d6b7b; --line: #e1e7ee; --page: #f5f7fa; --card: #fff; --blue: #2b63d9;
  --green: #0c8f63; --greenish: #dff5ea; --red: #c03d4f; --reddish: #fde6e8; --gray: #b9c3cf }
@media (prefers-color-scheme: dark) { :root { --ink: #e7edf4; --soft: #98a6b5; --line: #2a3441; --page: #10161d;
  --card: #18202a; --blue: #7ea6ff; --green: #4fd3a0; --greenish: #12362a; --red: #ff8f9c; --reddish: #43202a;
  --gray: #4a5766 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  sans-serif; -webkit-text-size-adjust: 100% }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 1.9em; line-height: 1.2; margin: 0; overflow-wrap: anywhere; letter-spacing: -.01em }
h2 { font-size: 1.2em; margin: 44px 0 6px } h3 { font-size: 1em; margin: 0 } h4 { margin: 0; font-size: .8em;
  color: var(--soft); font-weight: 600 }
p { margin: 0 } .eyebrow { color: var(--blue); font-weight: 600 } .lead { color: var(--soft); font-size: 1.1em;
  margin-top: 6px }
.note { color: var(--soft); margin-bottom: 14px; max-width: 46em } small { color: var(--soft); font-size: .85em }
.cards, .charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 235px), 1fr)) }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)) }
.card, .bar, figure, .sample, .wide { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 16px; margin: 0 }
.card h3, .bar h3 { display: flex; justify-content: space-between; gap: 8px; align-items: baseline }
.card p, .bar p { color: var(--soft); font-size: .9em } .card p + p { margin-top: 4px }
.card .figure, .bar .figure { color: var(--ink); font-size: 1.45em; font-weight: 650; margin: 4px 0;
  font-variant-numeric: tabular-nums }
.figure small { font-size: .62em; font-weight: 500 }
.badge { font-size: .75em; font-weight: 600; padding: 1px 9px; border-radius: 99px; white-space: nowrap }
.ok .badge { color: var(--green); background: var(--greenish) } .no .badge { color: var(--red);
  background: var(--reddish) }
.bar + .bar { margin-top: 14px }
.track { position: relative; display: flex; gap: 2px; height: 16px; border-radius: 8px; overflow: hidden;
  margin: 6px 0 8px }
.track i { position: absolute; left: 50%; top: 0; bottom: 0; border-left: 2px dashed var(--ink); opacity: .6 }
.track span { flex-basis: 0 } .track .win, b.win { background: var(--green) } .track .tie, b.tie {
  background: var(--gray) } .track .loss, b.loss { background: var(--red) }
b { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin: 0 6px 0 0 } b + b, b.tie, b.loss {
  margin-left: 12px }
.wide { overflow-x: auto; padding: 4px 16px } table { border-collapse: collapse; width: 100%; font-variant-numeric:
  tabular-nums } th, td { text-align: left; padding: 8px 16px 8px 0; white-space: nowrap } th { color: var(--soft);
  font-weight: 600; font-size: .87em } tr + tr td { border-top: 1px solid var(--line) }
tr + tr td:first-child:empty, tr + tr td:first-child:empty ~ td { border-top-color: transparent }
td:last-child { color: var(--soft); white-space: normal; overflow-wrap: anywhere; min-width: 9em }
figcaption { font-weight: 600; margin-bottom: 4px } figcaption small { font-weight: 400 }
svg { display: block; width: 100%; height: auto } svg text { font-size: 10.5px; fill: var(--soft) }
.grid { stroke: var(--line) } polyline { fill: none; stroke-linejoin: round } .curve { stroke: var(--blue);
  stroke-width: 2 } .raw { stroke: var(--blue); stroke-width: 1; opacity: .3 } .target { stroke: var(--red);
  stroke-width: 1.4; stroke-dasharray: 5 4 } .mark { fill: var(--green); stroke: var(--card); stroke-width: 1.2 }
.sample { padding: 0; overflow: hidden } .sample + .sample { margin-top: 14px } .prompt { padding: 12px 16px;
  font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; border-bottom: 1px solid var(--line) }
.pair { display: grid; grid-template-columns: 1fr 1fr } .pair > div { padding: 10px 16px 12px; min-width: 0 }
.pair > div + div { border-left: 1px solid var(--line) } .after h4 { color: var(--blue) }
pre { font: inherit; margin: 2px 0 6px; white-space: pre-wrap; overflow-wrap: anywhere }
@media (max-width: 560px) { main { padding: 20px 14px 48px } .pair { grid-template-columns: 1fr } .pair > div + div {
  border-left: 0; border-top: 1px solid var(--line) } }
"""
