"""A tokenizer folder of whole words for models trained from scratch: `tools/word_dictionary.py SHARDS --out FOLDER`.

It knows the words of the prompt and of the shards' class names, nothing else: other names need a model with a larger
dictionary. Pretrained models bring their own.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ofaseg.atomic import atomic_write  # noqa: E402
from ofaseg.data.shards import load_vocabulary  # noqa: E402
from ofaseg.prompts import SEGMENTATION_PROMPT, UNKNOWN_NAME  # noqa: E402
from ofaseg.vocabulary import VocabularyError  # noqa: E402


def write_word_dictionary(out, class_names) -> list[str]:
    """Writes `out`/dict.txt, one "<word> 1" per line, and returns the words: those of the prompt, then those of the names."""
    text = " ".join([SEGMENTATION_PROMPT, UNKNOWN_NAME, *class_names])
    words = list(dict.fromkeys(text.lower().split()))
    with atomic_write(Path(out) / "dict.txt", "w") as file:
        file.writelines(f"{word} 1\n" for word in words)
    return words


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="word_dictionary", description=__doc__.splitlines()[0])
    parser.add_argument("shards", help="folder of shards with vocabulary.json")
    parser.add_argument("--out", required=True, help="folder to write, for --bpe-dir")
    args = parser.parse_args(argv)
    try:
        vocabulary = load_vocabulary(args.shards)
        if vocabulary is None:
            raise VocabularyError(f"{args.shards}: no vocabulary.json with class names; give a folder that data_prep/prepare.py wrote")
        words = write_word_dictionary(args.out, vocabulary.names)
    except (VocabularyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(words)} words in {Path(args.out) / 'dict.txt'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
