"""How the page about a dataset looks."""

CSS = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --line: #e3e6ec; --paper: #f6f7f9; --card: #fff;
  --bar: #6b8afd; --warm: #f2a54a; --bad: #d64545; --doubt: #d9912b; --good: #2f9e63; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ee; --soft: #9aa3b2; --line: #30353f; --paper: #16181d;
  --card: #1e2127; --bar: #5f7ef0; --warm: #c98a3c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 20px; margin: 36px 0 12px; }
h3 { font-size: 16px; margin: 28px 0 10px; }
p { margin: 4px 0; } .soft, small { color: var(--soft); } small { font-size: 12.5px; }
nav a { margin-right: 14px; color: inherit; }
bdi, code { overflow-wrap: anywhere; } code { font: 12.5px/1.4 ui-monospace, "DejaVu Sans Mono", Consolas, monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.tile, .card, table { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 12px 14px; } .tile b { display: block; font-size: 23px; line-height: 1.25; font-weight: 650; }
.tile.bad b { color: var(--bad); } .tile.doubtful b { color: var(--doubt); } .tile.good b { color: var(--good); }
.card { padding: 12px 16px; margin: 10px 0; }
.problem { border-left: 5px solid var(--doubt); } .problem.bad { border-left-color: var(--bad); }
.problem > summary { cursor: pointer; font-weight: 600; } .problem > summary small { font-weight: 400; }
.fine { border-left: 5px solid var(--good); }
.row { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 10px; }
.case { width: 166px; font-size: 12.5px; line-height: 1.35; } .case.wide { width: auto; max-width: 100%; }
.case.long { width: 344px; }
.case img { display: block; max-width: 166px; max-height: 130px; border-radius: 6px; margin-bottom: 4px; }
.group { display: flex; flex-wrap: wrap; gap: 8px; } .group .case { width: 130px; } .group img { max-width: 130px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; overflow: hidden; }
th, td { text-align: left; padding: 7px 12px; border-top: 1px solid var(--line); vertical-align: middle; }
tr:first-child th { border-top: 0; color: var(--soft); font-weight: 500; font-size: 13px; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; height: 10px; border-radius: 3px; background: var(--bar); min-width: 2px;
  vertical-align: middle; margin-right: 8px; } .bar.warm { background: var(--warm); }
.shape { display: inline-block; border: 1.5px solid var(--soft); border-radius: 2px; margin-right: 10px;
  vertical-align: middle; }
.draws { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 12px; }
.draw { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px; font-size: 13px;
  line-height: 1.4; } .draw p { margin: 5px 0 0; padding-left: 9px; border-left: 3px solid; }
.draw p.plain { border-color: transparent; padding-left: 0; }
.whole { position: relative; width: fit-content; margin: 0 auto 6px; overflow: hidden; border-radius: 4px; }
.whole img { display: block; max-width: 100%; }
.whole i { position: absolute; border: 2px solid; } .whole i:first-of-type { box-shadow: 0 0 0 999px #000a; }
.c0 { border-color: #ff5000 !important; } .c1 { border-color: #008cff !important; }
.c2 { border-color: #1eaa3c !important; } .c3 { border-color: #c83cc8 !important; }
.c4 { border-color: #966e00 !important; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 12px; align-items: start; }
.two .card { margin: 0 0 12px; } .tags { display: grid; grid-template-columns: minmax(90px, auto) 1fr; gap: 2px 12px;
  align-items: center; font-size: 13.5px; } .tags > bdi { max-width: 230px; }
.columns { display: flex; align-items: flex-end; gap: 2px; height: 90px; margin-top: 8px; }
.columns i { flex: 1; background: var(--bar); border-radius: 2px 2px 0 0; } .columns i.over { background: var(--bad); }
.ends { display: flex; justify-content: space-between; border-top: 1px solid var(--line); font-size: 12.5px;
  color: var(--soft); }
.once { max-height: 190px; overflow: auto; font-size: 13px; }
"""
