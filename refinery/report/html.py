"""One way to make a page: strict templates, everything escaped, hidden characters of strangers' text written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from refinery import __version__
from refinery.report import visible


def render_page(
    template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None
) -> str:
    """Return a page as HTML.

    Templates come through the package's loader, so a zip of the package serves as well as a folder. A name that a
    template uses and nobody gave is an error, never an empty place.

    Args:
        template: file in ``refinery/report/templates``.
        values: what the template reads; ``version`` is added.
        filters: beside those of `refinery.report.visible`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("refinery.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_reveal,
    )
    environment.filters |= {
        "number": visible.number,
        "size": visible.size,
        "rate": visible.rate,
        "percent": visible.percent,
        "duration": visible.duration,
        "plain": visible.plain,
        "token": visible.token,
        "name": visible.breakable,
        **(filters or {}),
    }
    return environment.get_template(template).render(**values, version=__version__)


def _reveal(value: Any) -> Any:
    """Make what is hidden in a stranger's text visible, in every value that a template prints."""
    return visible.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
