"""Style sheets, scripts and pages that what the package writes carries within it."""

from importlib import resources


def page_part(name: str) -> str:
    """Returns the text of one of the files here."""
    return resources.files(__name__).joinpath(name).read_text("utf-8")
