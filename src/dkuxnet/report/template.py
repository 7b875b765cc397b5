"""The html templates of the pages, filled."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, page: dict[str, Any]) -> bytes:
    """Fill the template of that name. Everything is escaped: names come from outside, and need not be valid Unicode."""
    loader = PackageLoader("dkuxnet", "report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(page).encode("utf-8", errors="replace")
