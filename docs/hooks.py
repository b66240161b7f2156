"""The site takes the README and its like from the root, and its tables of settings and commands from the code.

``mkdocs.yml`` names this file. A line such as ``<!-- settings: search -->`` becomes a table when the site is built.
"""

from __future__ import annotations

import argparse
import dataclasses
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the site is built of this checkout, installed or not

from nni_autorecon.cli.main import FORMER_NAMES, build_parser  # noqa: E402
from nni_autorecon.config.rules import Rule  # noqa: E402
from nni_autorecon.config.settings import Settings  # noqa: E402
from nni_autorecon.config.stages import STAGES  # noqa: E402

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
"""These pages lie outside docs/, at which GitHub shows them; the README is the site's first page."""
OTHERS = ("LICENSE", "CITATION.cff", "experiment.yml", "examples/your_network.ipynb")
"""Pages link to these files, which the site gets as they are."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_config(config: Any) -> Any:
    """List the pages of docs/results in the navigation."""
    (results,) = (entry["Results"] for entry in config.nav if "Results" in entry)
    names = sorted(path.name for path in (ROOT / "docs" / "results").glob("*.md"))
    names.remove("README.md")
    results += [{"All results": "results/README.md"}, {"Tables": [{Path(n).stem: f"results/{n}"} for n in names]}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and files that lie outside docs/."""
    from mkdocs.structure.files import File

    experiments = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "experiments").glob("*.yml"))]
    for name in (*PAGES, *OTHERS, *experiments):
        files.append(File.generated(config, _on_site(name), content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the tables, and turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    source = "README.md" if here == "index.md" else here if here in PAGES else f"docs/{here}"
    folder = posixpath.dirname(source)

    def relinked(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[1]))
        if found[1].endswith("/") or not (ROOT / target).is_file():
            return found[1]
        return posixpath.relpath(_on_site(target), posixpath.dirname(here) or ".")

    if here == "results/README.md":
        markdown = re.sub(r"(?<!\[)`([\w-]+\.(?:md|json))`", _linked_result, markdown)
    return MARKER.sub(_table, LINK.sub(relinked, markdown))


def _on_site(path: str) -> str:
    """Return the place on the site of a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def _linked_result(found: re.Match[str]) -> str:
    return f"[{found[0]}]({found[1]})" if (ROOT / "docs" / "results" / found[1]).is_file() else found[0]


MARKER = re.compile(r"^<!-- (settings|presets|command|former)(?:: ([\w-]+))? -->$", re.MULTILINE)


def _table(found: re.Match[str]) -> str:
    kind, name = found[1], found[2]
    if kind == "former":
        return "\n".join(
            _rows(("former name", "present name"), [(f"`{a}`", f"`{b}`") for a, b in FORMER_NAMES.items()])
        )
    if kind == "command":
        return "\n".join(command_lines(name))
    config = STAGES[name].config
    return "\n".join(settings_lines(config) if kind == "settings" else preset_lines(config))


def settings_lines(kind: type[Settings]) -> Iterator[str]:
    """Yield tables of all settings of a stage, a table for each group of its help."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    listed = {name for names in kind.GROUPS.values() for name in names}
    rest = tuple(name for name in fields if name not in listed)
    for heading, names in (*kind.GROUPS.items(), *([("other settings", rest)] if rest else [])):
        yield from ("", f"**{heading[0].upper()}{heading[1:]}**", "")
        rows = [_setting(kind, fields[name]) for name in names]
        yield from _rows(("setting", "is", "takes", "default", "used if"), rows)


def _setting(kind: type[Settings], field: dataclasses.Field[Any]) -> tuple[str, ...]:
    meta = field.metadata
    used = [_condition(rule) for rule in kind.RULES if field.name in rule.names]
    symbol = f" ({meta['symbol']})" if meta["symbol"] else ""
    default = "–" if field.default is None else f"`{str(field.default).lower()}`"
    return f"`{field.name}`{symbol}", meta["help"], _values(kind, field), default, "; and if ".join(used) or "always"


def _values(kind: type[Settings], field: dataclasses.Field[Any]) -> str:
    """Return what a setting takes, in words."""
    meta, plain = field.metadata, kind.field_type(field.name)
    if meta["choices"]:
        return ", ".join(f"`{choice}`" for choice in meta["choices"])
    words = {int: "whole number", float: "number", bool: "`true`, `false`"}.get(plain, "text")
    low, high = (None if meta[end] is None else f"{meta[end]:.10g}" for end in ("low", "high"))
    if low and high:
        return f"{words}, {low} to {high}"
    return f"{words}, {low} or more" if low else f"{words}, {high} or less" if high else words


def _condition(rule: Rule) -> str:
    names = " or ".join(f"`{name}`" for name in rule.when)
    if rule.values is None:
        return f"{names} is not {' or '.join(f'`{value}`' for value in rule.others)}"
    return f"{names} is {', '.join(f'`{value}`' for value in rule.values)}"


def preset_lines(kind: type[Settings]) -> Iterator[str]:
    """Yield a table of the values that each preset of a stage sets."""
    for name, meanings in kind.PRESETS.items():
        rows = [
            (f"`{value}`", ", ".join(f"`{key}: {setting}`" for key, setting in meaning.items()))
            for value, meaning in meanings.items()
        ]
        yield from ("", *_rows((f"`{name}`", "sets"), rows))


def command_lines(name: str) -> Iterator[str]:
    """Yield the purpose, the usage and the arguments of a command; the settings of a stage have a page of their own."""
    parser = commands()[name]
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    yield from (parser.description or "", "", "```text", parser.format_usage().removeprefix("usage: ").strip(), "```")
    names = {field.name for field in dataclasses.fields(STAGES[name].config)} if name in STAGES else set()
    actions = [each for each in parser._actions if each.dest not in names and each.dest != "help"]
    if actions:
        yield from ("", *_rows(("argument", "is"), [_argument(parser, action) for action in actions]))
    if name in STAGES:
        yield from ("", f"Beside these it takes all [settings of the stage](settings.md#{name}) as flags.")


def commands() -> Mapping[str, argparse.ArgumentParser]:
    """Return the parsers of all commands, by name."""
    (kinds,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return kinds.choices


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str]:
    metavar = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else action.dest.upper())
    value = "" if action.nargs == 0 else f" {metavar}"
    names = ", ".join(f"`{flag}{value}`" for flag in action.option_strings) or f"`{metavar}`"
    return names, (action.help or "") % {"prog": parser.prog, "default": action.default}


def _rows(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
