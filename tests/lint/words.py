#!/usr/bin/env python3
"""Documentation uses the words of the field. Usage: words.py ROOT

Looks for words that mean something else, or nothing, to readers of other projects, in docs/, README.md, CONTRIBUTING.md, CHANGELOG.md and
each layer's README.md, and names the word to use. Code (fenced blocks, `code`), targets of links and lists made from sources are not looked at.
"""

import re
import sys

import tree

PAGES = re.compile(r"CHANGELOG\.md|README\.md|CONTRIBUTING\.md|docs/[^/]+\.md|(?:%s)/README\.md" % "|".join((*tree.LAYERS, "deploy")))

WORDS = {
    r"whole": "complete, per-tensor",
    r"most": "maximum, nearly all, largest",
    r"least": "minimum, smallest",
    r"behind": "after",
    r"besides?": "next to, together with, also",
    r"anew": "again",
    r"hops?|hopped": "dispatch",
    r"rooms?": "space, capacity",
    r"seals?|sealed|settles?|settled": "finalize, finish",
    r"truths?": "reference",
    r"blast": "error scope",
    r"mends?|mended": "fix",
    r"chains?": "activation store",
    r"flows?": "microbatches",
    r"sites?": "input group",
    r"kept apart": "held out, stored separately",
    r"held back": "held out, suspended",
    r"held-back": "held-out",
    r"floors?": "layer, lower bound",
    r"faces?": "public header",
    r"house": "layers",
    r"(?<!there\s)(?:is|are|be) no": "is not a",
    r"gotten": "actual",
    r"pinch|aloud|kin|oracles?": "plain words",
    r"roofs?": "peak",
    r"front door": "argument checks",
    r"as (?:it|they) stands?": "unchanged",
    r"without a word": "without a warning",
    r"makes? up for": "compensate for",
    r"goes on|go on|going on": "continue",
    r"looked for|looks for|look for": "search for",
    r"gives? up|given up": "release, stop",
}

# Phrases in which a listed word is the word of the field: the phrase as it is written, and why.
ALLOWED = {
    "Hugging Face": "a name",
    "at most": "the usual phrase for an upper bound",
    "at least": "the usual phrase for a lower bound",
    "least squares": "the method's name",
    "flow control": "TCP's term",
    "other sites": "of the web",
    "another site": "of the web",
}

CODE = re.compile(r"^(?:```.*?^```$|<!-- operations.*?<!-- end of operations -->)|`[^`\n]*`|\]\([^)\n]*\)", re.M | re.S)
PATTERNS = [(re.compile(r"(?<![\w-])(?:%s)(?![\w-])" % word.replace(" ", r"\s+"), re.I), use) for word, use in WORDS.items()]
PHRASES = re.compile("|".join(r"\b%s\b" % re.escape(phrase).replace(r"\ ", r"\s+") for phrase in ALLOWED), re.I)


def blank(match):
    """As long as what it stands for, with its lines; no word runs across it."""
    return re.sub(r"[^\n]", "|", match.group(0))


def faults(text):
    text = PHRASES.sub(blank, CODE.sub(blank, text))
    found = []
    for pattern, use in PATTERNS:
        for match in pattern.finditer(text):
            found.append((text.count("\n", 0, match.start()) + 1, " ".join(match.group(0).split()), use))
    return sorted(found)


def self_test():
    for bad in ["The whole job.", "Behind it", "a mended file", "It is no\nerror.", "the most\nuseful", "x\n\nThe floor above", "held\nback"]:
        assert faults(bad), bad
    for good in ["```\nroom\n```\n", "`whole`", "at\nmost 3", "wholesale", "least squares", "TCP flow control", "[a](#the-site)",
                 "is not an error", "`a` holds `b`", "is none", "There is no authentication", "as it is stored"]:
        assert not faults(good), (good, faults(good))
    assert faults("```\nroom\n```\n\n`room`\nroom\n")[0][0] == 6
    for page in ["README.md", "docs/api.md", "gpu/README.md"]:
        assert PAGES.fullmatch(page), page
    for page in ["tests/bench/RESULTS.md", "docs/a/b.md"]:
        assert not PAGES.fullmatch(page), page


def main():
    self_test()
    root = sys.argv[1]
    pages = [name for name in tree.tracked(root) if PAGES.fullmatch(name)]
    failed = 0
    for name in pages:
        for line, word, use in faults(tree.read(root, name)):
            print(f'{name}:{line}: "{word}": use {use}')
            failed += 1
    print(f"{len(pages)} pages, {failed} words to replace")
    return 1 if failed or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
