"""What the look of the report adds to that of every page."""

STYLE = """
a { color: inherit; text-decoration-color: var(--gray); text-underline-offset: 3px }
.steps { list-style: none; margin: 0; padding: 10px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; font-variant-numeric: tabular-nums }
.steps li { display: grid; grid-template-columns: minmax(110px, 1.1fr) 2fr 2fr; gap: 4px 20px; align-items: center;
  padding: 7px 0 } .steps li + li { border-top: 1px solid var(--line) }
.steps .name { overflow-wrap: anywhere; min-width: 0 } .steps .whole .name { font-weight: 650 }
.steps .heads { color: var(--soft); font-weight: 600; font-size: .87em; padding-top: 0 }
.amount { display: grid; grid-template-columns: 1fr minmax(7.6em, auto); gap: 10px; align-items: center;
  min-width: 0 } .amount span { text-align: right; white-space: nowrap }
.flow { display: flex; height: 12px; border-radius: 3px; overflow: hidden; background: var(--page) }
.flow i { background: var(--blue) } .flow u { background: var(--red); min-width: 2px }
.numbers th + th, .numbers td + td { text-align: right } .numbers td small { display: block }
.numbers th:first-child, .numbers td:first-child { position: sticky; left: 0; background: var(--card);
  max-width: 15em; white-space: normal; overflow-wrap: anywhere; min-width: 9.5em }
.numbers .rate { background: color-mix(in srgb, var(--red) var(--rate), transparent); border-radius: 3px }
.numbers td, .numbers th { padding: 6px 10px } .numbers td:first-child, .numbers th:first-child { padding-left: 0 }
.column { fill: var(--blue) } .bound { stroke: var(--red); stroke-width: 1.4; stroke-dasharray: 5 4 }
figure svg { overflow: visible } svg .bounded { fill: var(--red) } figure p { color: var(--soft); font-size: .85em;
  margin-top: 4px }
details + details { margin-top: 14px } summary { cursor: pointer; font-weight: 600; padding: 4px 0 8px;
  overflow-wrap: anywhere } summary small { font-weight: 400; margin-left: 8px }
.samples { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)) }
.sample { min-width: 0; contain: paint } .sample p { color: var(--soft); font-size: .85em; overflow-wrap: anywhere }
.sample pre { max-height: 17em; overflow: auto; scrollbar-width: thin; scrollbar-color: var(--gray) transparent;
  margin: 8px 0 0; font-size: .92em; unicode-bidi: plaintext;
  line-height: 1.45 }
@media (max-width: 640px) { .steps li { grid-template-columns: 1fr 1fr } .steps .name { grid-column: 1 / -1 }
  .steps .name:empty { display: none } .numbers th:first-child, .numbers td:first-child { min-width: 7em }
  .amount { grid-template-columns: 1fr; gap: 3px } .amount span { text-align: left } }
"""
