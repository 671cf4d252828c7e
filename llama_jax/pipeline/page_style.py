"""What the look of the report adds to that of every page."""

STYLE = """
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 235px), 1fr)) }
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
tr + tr td:first-child:empty, tr + tr td:first-child:empty ~ td { border-top-color: transparent }
td:last-child { color: var(--soft); white-space: normal; overflow-wrap: anywhere; min-width: 9em }
polyline { fill: none; stroke-linejoin: round } .curve { stroke: var(--blue); stroke-width: 2 } .raw {
  stroke: var(--blue); stroke-width: 1; opacity: .3 } .target { stroke: var(--red); stroke-width: 1.4;
  stroke-dasharray: 5 4 } .mark { fill: var(--green); stroke: var(--card); stroke-width: 1.2 }
.sample { padding: 0; overflow: hidden } .sample + .sample { margin-top: 14px } .prompt { padding: 12px 16px;
  font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; border-bottom: 1px solid var(--line) }
.pair { display: grid; grid-template-columns: 1fr 1fr } .pair > div { padding: 10px 16px 12px; min-width: 0 }
.pair > div + div { border-left: 1px solid var(--line) } .after h4 { color: var(--blue) }
@media (max-width: 560px) { .pair { grid-template-columns: 1fr } .pair > div + div { border-left: 0;
  border-top: 1px solid var(--line) } }
"""
