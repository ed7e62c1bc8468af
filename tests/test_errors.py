import pytest

from sat_ssvae.errors import and_more, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [(OSError("\n no space\nleft"), "no space"), (RuntimeError(), "RuntimeError"), (ValueError(" \n"), "ValueError")],
)
def test_an_error_has_a_first_line_even_without_a_message(error, line):
    assert first_line(error) == line


def test_others_are_counted_behind_the_first():
    assert [and_more(range(count)) for count in (1, 2, 4)] == ["", " (and 1 more)", " (and 3 more)"]
