"""An HTML page taken apart, for tests of pages."""

import html.parser


class Parsed(html.parser.HTMLParser):
    """Tags, text and references of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "img", "input", "br", "line", "link"})

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.sources, self.tags, self.data = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.sources += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.data.append(data)
        elif "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())
