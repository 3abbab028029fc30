"""What datatrove takes for words, run in its own environment: writes tests/golden/datatrove_words.json anew.

    datatrove_words.py IN.json OUT.json

IN: a JSON list of strings, or an object whose keys they are; OUT: string -> its words, sorted.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from datatrove.utils.text import split_into_words


def main() -> None:
    texts = list(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    words = {text: split_into_words(text, "eng") for text in sorted(set(texts))}
    Path(sys.argv[2]).write_text(json.dumps(words, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(json.dumps({"version": version("datatrove"), "spacy": version("spacy"), "strings": len(words)}))


if __name__ == "__main__":
    main()
