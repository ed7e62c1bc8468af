"""Building blocks of the HTML pages that commands write: one file each, which needs nothing from outside."""
