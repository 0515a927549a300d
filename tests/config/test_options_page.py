"""The page of options."""

from docs.options import FILE, page


def test_the_page_of_options_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == page(), "run: python docs/options.py"
