"""The page about datasets: one HTML file with everything in it, in which nothing can run.

Captions, file names and messages are somebody else's text: each goes through `text`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hcpdiff.data.seeing.charts import bar, columns, data_uri, shape, tag_bars, text
from hcpdiff.data.seeing.draws import Draw, frames
from hcpdiff.data.seeing.problems import Entry, Problem
from hcpdiff.data.seeing.report import CASES, GROUP, Report
from hcpdiff.data.seeing.style import CSS

LISTED = 200  # cases beyond those shown as pictures that are named
TAGS = 40  # that are shown with their counts
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, reports: Sequence[Report]) -> str:
    """The whole page."""
    names = [report.summary.name for report in reports]
    links = "".join(f'<a href="#d{n}">{text(name)}</a>' for n, name in enumerate(names)) if len(names) > 1 else ""
    body = "".join(_dataset(report, n) for n, report in enumerate(reports))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>'
        f"<style>{CSS}</style></head><body><main><h1>{text(title)}</h1><nav>{links}</nav>{body}</main></body></html>\n"
    )


def _dataset(report: Report, number: int) -> str:
    parts = [
        f'<h2 id="d{number}">{text(report.summary.name)}</h2>',
        *_tiles(report),
        *_problems(report),
        *_sizes(report),
        *_epochs(report),
        *_samples(report),
        *_captions(report),
    ]
    return "".join(parts)


def _tiles(report: Report) -> Iterator[str]:
    summary, words = report.summary, report.words
    first, bad = summary.epochs[0], {problem.grade for problem in report.problems}
    grade = "bad" if "bad" in bad else "doubtful" if bad else "good"
    share = f"{summary.captioned / summary.asked:.0%}" if summary.asked else "0%"
    tiles = [
        ("", f"{summary.images:,}", "images"),
        ("bad" if words.missing else "", share, "have a caption"),
        ("", f"{first.shown:,}", "samples an epoch"),
        ("", f"{first.batches:,}", f"batches of {report.dataset.batch_size} an epoch"),
        ("", f"{summary.crop_loss:.1%}", "of the area is cut away"),
        (grade, f"{len(report.problems)}", "kinds of problems" if len(report.problems) != 1 else "kind of problem"),
    ]
    yield '<div class="tiles">'
    yield from (f'<div class="tile {kind}"><b>{value}</b>{label}</div>' for kind, value, label in tiles)
    yield "</div>"


def _problems(report: Report) -> Iterator[str]:
    summary = report.summary
    every = report.decoded >= summary.images
    looked = "all images" if every else f"{report.decoded:,} images, evenly spread, of {summary.images:,}"
    yield f"<h3>Problems</h3><p class=soft>Duplicates, blur and broken pixels were looked for in {looked}"
    yield ".</p>" if every else "; <code>--images N</code> decodes more.</p>"
    if summary.asked < summary.images:
        yield f"<p class=soft>Captions were read of {summary.asked:,} images, evenly spread.</p>"
    for problem in report.problems:
        yield _problem(report, problem)
    if not report.problems:
        yield '<div class="card fine">None found.</div>'


def _problem(report: Report, problem: Problem) -> str:
    shown, rest = problem.entries[:CASES], problem.entries[CASES:]
    cases = "".join(_case(report, entry) for entry in shown)
    more = ""
    if rest:
        names = "<br>".join(_named(report, entry) for entry in rest[:LISTED])
        left = f"<br>and {len(rest) - LISTED:,} more" if len(rest) > LISTED else ""
        more = f"<details><summary>{len(rest):,} more</summary><small>{names}{left}</small></details>"
    count = f"{problem.images:,} image{'s' if problem.images != 1 else ''}"
    return (
        f'<details class="card problem {problem.grade}" open><summary>{text(problem.title)} '
        f"<small>{count}</small></summary>"
        f'<p class="soft">{text(problem.advice)}</p><div class="row">{cases}</div>{more}</details>'
    )


def _case(report: Report, entry: Entry) -> str:
    if len(entry.items) > 1:
        pictures = "".join(_picture(report, item, "") for item in entry.items[:GROUP])
        more = f"<small>and {len(entry.items) - GROUP} more</small>" if len(entry.items) > GROUP else ""
        return (
            f'<div class="case wide"><div class="group">{pictures}{more}</div><small>{text(entry.text)}</small></div>'
        )
    if not entry.items:
        return f'<div class="case wide"><code>{text(entry.key)}</code><br><small>{text(entry.text)}</small></div>'
    return _picture(report, entry.items[0], entry.text)


def _picture(report: Report, item: int, note: str) -> str:
    said = f"<br><small>{text(note, 220)}</small>" if note else ""
    kind = "case long" if len(note) > 90 else "case"
    return f'<div class="{kind}">{_image(report, item)}<code>{text(_key(report, item))}</code>{said}</div>'


def _named(report: Report, entry: Entry) -> str:
    names = [_key(report, item) for item in entry.items] or [entry.key]
    return f"<code>{text(', '.join(names), 300)}</code> {text(entry.text, 200)}"


def _sizes(report: Report) -> Iterator[str]:
    buckets = report.summary.buckets
    most = max(bucket.images for bucket in buckets)
    yield "<h3>Sizes</h3><table><tr><th>height x width<th>images<th class=number>samples<th class=number>batches"
    yield "<th class=number>not full<th>cut away<th class=number>enlarged</tr>"
    for bucket in sorted(buckets, key=lambda bucket: bucket.size[1] / bucket.size[0]):
        yield f"<tr><td>{shape(bucket.size)}{bucket.size[0]} x {bucket.size[1]}"
        yield f"<td>{bar(bucket.images / most)}{bucket.images:,}<td class=number>{bucket.samples:,}"
        yield f"<td class=number>{bucket.batches:,}<td class=number>{bucket.partial or ''}"
        yield f"<td>{bar(min(1.0, bucket.crop_loss * 2), 'warm')}{bucket.crop_loss:.1%}"
        yield f"<td class=number>{bucket.enlarged or ''}</tr>"
    yield "</table>"


def _epochs(report: Report) -> Iterator[str]:
    yield "<h3>What an epoch holds</h3><table><tr><th>epoch<th class=number>samples shown<th class=number>batches"
    yield "<th class=number>not full<th class=number>rows without loss<th class=number>shown once more"
    yield "<th class=number>left out</tr>"
    numbers = report.summary.epochs
    for epoch in numbers:
        name = "every" if len(numbers) == 1 else f"{epoch.number + 1}"
        cells = (epoch.shown, epoch.batches, epoch.partial, epoch.padded, epoch.again, epoch.left_out)
        yield f"<tr><td>{name}" + "".join(f"<td class=number>{cell:,}" for cell in cells) + "</tr>"
    yield "</table>"


def _samples(report: Report) -> Iterator[str]:
    yield "<h3>What the model sees</h3><p class=soft>Whole images; the frame is what a crop keeps, and a line of its "
    yield "colour is the prompt that goes with it."
    if report.dataset.transforms is not None:
        yield " What <code>transforms</code> do is not shown."
    yield '</p><div class="draws">'
    for item, shown in report.shown.items():
        yield f'<div class="draw">{_whole(report, item, shown)}<code>{text(_key(report, item))}</code>'
        yield "".join(_prompts(shown)) + "</div>"
    yield "</div>"


def _whole(report: Report, item: int, shown: Sequence[Draw]) -> str:
    if item not in report.thumbnails:
        return '<p class="plain soft">no picture, or it cannot be read</p>'
    boxes = "".join(
        f'<i class="c{numbers[0] % 5}" style="top:{top:.2%};left:{left:.2%};height:{tall:.2%};width:{wide:.2%}"></i>'
        for (top, left, tall, wide), numbers in frames(shown)
    )
    return f'<div class="whole">{_image(report, item)}{boxes}</div>'


def _prompts(shown: Sequence[Draw]) -> Iterator[str]:
    """The size, if all have the same; then each different prompt, marked by the colour of its first crop."""
    sizes = [f"{draw.view.size.target[0]} x {draw.view.size.target[1]}" for draw in shown]
    several = len(set(sizes)) > 1
    if not several:
        yield f" <small>{sizes[0]}</small>"
    told: dict[str, int] = {}
    for number, draw in enumerate(shown):
        marks = ", ".join(filter(None, [sizes[number] if several else "", "mirrored" if draw.view.flip else ""]))
        told.setdefault((f"<small>{marks}</small><br>" if marks else "") + _prompt(draw), number)
    yield from (f'<p class="c{number % 5}">{line}</p>' for line, number in told.items())


def _prompt(draw: Draw) -> str:
    if draw.prompt is None:
        return "<em>its caption cannot be read</em>"
    positive, negative = draw.prompt.positive, draw.prompt.negative
    against = f"<br><small>negative: {text(negative, 200)}</small>" if negative else ""
    return (text(positive, 400) if positive else "<em>empty prompt</em>") + against


def _captions(report: Report) -> Iterator[str]:
    words = report.words
    kind = "tags" if words.tags else "words"
    yield '<h3>Captions</h3><div class="two">'
    if words.counts:
        common = words.counts.most_common(TAGS)
        yield f'<div class="card"><b>The most frequent {kind}</b> <small>of {len(words.counts):,}; in how many images'
        yield f"</small>{tag_bars(common)}</div>"
    yield "<div>"
    yield from _tokens(report)
    once = words.once
    if once:
        listed = ", ".join(text(tag, 60) for tag in once[:300]) + (" ..." if len(once) > 300 else "")
        yield f'<div class="card"><b>{len(once):,} {kind} that one image has</b>'
        yield f'<small> perhaps misspelt</small><div class="once">{listed}</div></div>'
    if words.several:
        yield f'<p class="soft">{words.several:,} images have several captions, of which one is drawn each time.</p>'
    yield "</div></div>"


def _tokens(report: Report) -> Iterator[str]:
    """A histogram for each encoder; those that count alike have one together."""
    alike: dict[tuple[int, bytes], list[str]] = {}
    for encoder, tokens in report.words.tokens.items():
        alike.setdefault((tokens.limit, tokens.counts.tobytes()), []).append(encoder)
    for encoders in alike.values():
        tokens = report.words.tokens[encoders[0]]
        over = f"; {len(tokens.cut):,} are longer" if tokens.cut else ""
        yield f'<div class="card"><b>Tokens for {text(" and ".join(encoders))}</b> <small>of {len(tokens.counts):,} '
        yield f"prompts; {tokens.limit:,} are read{over}</small>{columns(tokens.counts, tokens.limit)}</div>"


def _image(report: Report, item: int) -> str:
    jpeg = report.thumbnails.get(item)
    return "" if jpeg is None else f'<img alt="" src="{data_uri(jpeg)}">'


def _key(report: Report, item: int) -> str:
    return report.dataset.samples.items.key(item)
