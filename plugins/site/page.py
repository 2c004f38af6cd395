"""From the data of a page to the page: template, styles and scripts become one file that may run nothing else."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
LIBRARY = "vendor/chart.umd.min.js"
_FIRST = "js/theme.js"
"""Runs before anything is drawn, so that a dark page never flashes white."""
_MODULES = ("dom", "values", "details", "table", "summary", "plots", "pareto", "curves", "prose", "main")
_SCRIPTS = (LIBRARY, *(f"js/{name}.js" for name in _MODULES))
"""In this order: each may use what those before it define."""


def page(data: dict[str, Any]) -> str:
    """The whole page as HTML."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    # Sources go into their elements as they are: escaping would change them, and none of them can hold what came from a record.
    style, first, *scripts = (Markup(_source(name)) for name in ("site.css", _FIRST, *_SCRIPTS))  # noqa: S704 - our own files
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("template.html").render(
        policy=policy(style, [first, *scripts]),
        style=style,
        first=first,
        scripts=scripts,
        data=Markup(script_json(data)),  # noqa: S704 - has no character that could end its element
    )


def policy(style: str, scripts: Sequence[str]) -> str:
    """The Content-Security-Policy: these very scripts and styles by their hashes, images within the page, nothing else."""
    own = f"script-src {' '.join(map(_csp_hash, scripts))}; style-src {_csp_hash(style)}"
    return f"default-src 'none'; {own}; img-src data:; base-uri 'none'; form-action 'none'"


def script_json(value: Any) -> str:
    """JSON that is the same inside a script element: no character of it can end or change the element.

    ASCII alone, so that neither U+2028 nor a page's encoding matters; `<`, `>` and `&` as escapes of JSON itself.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _source(name: str) -> str:
    """A file of this folder, without the comment that makes browsers' tools look for a source map."""
    text = (_FOLDER / name).read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("//# sourceMappingURL=")) + "\n"


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
