# SPDX-License-Identifier: Apache-2.0
"""Makes the golden tokenizers and ids that tests/test_tokenizer_json.c compares with.

python3 make.py                        the files beside it; needs the package tokenizers
python3 make.py IDS JSON TEXT          the package's ids of a text file, as int32, and its speed
python3 make.py BIG JSON VOCAB TEXT…   trains a Llama-3-like tokenizer of that many tokens
"""
import json
import sys
import time
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")
PARTS = [r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+",
         r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+"]
TEXTS = [
    "Hello world, it's the beginning.",
    "I'LL we'Ve they're DON'T don\u2019t 'S 'tis O'\u017f",
    "Na\u00efve caf\u00e9, e\u0301 decomposed, \u00fcber stra\u00dfe, \u0130stanbul \u1e9e",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5. \u4f60\u597d\uff0c"
    "\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u30ab\u30bf\u30ab\u30ca \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 \ud55c\uad6d\uc5b4",
    "\U0001f600\U0001f438 family \U0001f468\u200d\U0001f469\u200d\U0001f467 flag \U0001f1e9\U0001f1ea skin \U0001f44d\U0001f3fd \u2764\ufe0f",
    "1 12 123 1234 12345678901 3.14159 1e-9 \u0663\u0664\u0665\u0666 \u00bd\u00b2\u2163 0x1F",
    "a b  c   d    e\tf\t\tg \t h",
    "   leading, trailing   ",
    " \n\n  \r\n\r\n\t\n x\n\n\n    y",
    "\u00a0nbsp \u2003em\u2003 \u3000wide\u3000 \u2028line \u0085next \u180evowel \u200bzero \ufeffbom \u1680ogham \u202f\u205f",
    "def f(x):\n    return x ** 2  # (comment)\n\n\nif __name__ == '__main__':\n\tf(1)\n",
    "<div class=\"a\">&amp;</div>!!! ??? ... ---___===",
    "<|begin_of_text|>Hello<|end_of_text|><|reserved|> x<|reserved_long|>y <|reserved",
    "a<|keep|>b <|keep|> <<|keep|>><|keep|><|keep|>",
    "a<|keep|>!!b<|keep|>!c <|keep|>!!!",
    "\u0663-\u0664.5+\u00bd",
    "tab\x00nul\x07bell\x1besc\x7fdel\x80\x9f",
    "a" * 300 + "na" * 200 + " " * 100 + "." * 70,
    "the of and " * 40,
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u1780\u1798\u17d2\u1796\u17bb\u1787\u17b6 \u0300\u0301 combining\u0327 \u2460\u3220 \U0001d7d8\U00010400\U0002000b\U000e0001",
    "",
    "\n",
    " ",
    "x",
]
TRAINING = TEXTS + [
    "the beginning of the word and the end of the world, it is what they were and will be",
    "return x if self.value == 12 else None  # comment about the value",
    "caf\u00e9 \u043f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d\u4e16\u754c \U0001f600\U0001f438",
] * 5
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved|>", "<|reserved_long|>"]


def byte_level(regex, space=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=regex)


def split(*patterns):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns] + [byte_level(False)])


def build(pre, vocab, texts, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<|keep|>", normalized=True), AddedToken("<|keep|>!!", normalized=True),
                          AddedToken("\u00abraw\u00bb\U0001f9ea", normalized=False)])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                      special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))])])
    return tokenizer


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def make_golden():
    made = {"gpt2": build(byte_level(True), 420, TRAINING), "llama3": build(split(LLAMA_3), 420, TRAINING),
            "parts": build(split(*PARTS), 420, TRAINING), "space": build(byte_level(True, True), 320, TRAINING)}
    # Merges as texts, as older files have them.
    old = json.loads(made["gpt2"].to_str())
    old["model"]["merges"] = [" ".join(pair) for pair in old["model"]["merges"]]
    made["gpt2"] = Tokenizer.from_str(json.dumps(old))
    # Whole words that no merges lead to: they count when merges are ignored, else they never come out.
    whole = json.loads(made["llama3"].to_str())
    whole["model"]["merges"] = whole["model"]["merges"][:40]
    made["parted"] = Tokenizer.from_str(json.dumps(whole))
    whole["model"]["ignore_merges"] = True
    made["whole"] = Tokenizer.from_str(json.dumps(whole))
    dropped = json.loads(made["llama3"].to_str())
    dropped["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed", invert=True)
    dropped["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\s+(?!\S)|\d|[^\p{L}\p{N}\s]++"
    made["dropped"] = Tokenizer.from_str(json.dumps(dropped))
    for name, tokenizer in made.items():
        data = json.loads(tokenizer.to_str())
        if name == "gpt2":
            data["model"]["merges"] = old["model"]["merges"]
        (HERE / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")
    texts = TEXTS + ["x \u00abraw\u00bb\U0001f9eay"]
    cases = {"texts": texts, "ids": {n: [ids(t, text) for text in texts] for n, t in made.items()}}
    (HERE / "cases.json").write_text(json.dumps(cases, separators=(",", ":")).replace("]],", "]],\n") + "\n")


def main(arguments):
    if not arguments:
        make_golden()
    elif arguments[0] == "BIG":
        texts = [line for path in arguments[3:] for line in Path(path).read_text().splitlines(keepends=True)]
        build(split(LLAMA_3), int(arguments[2]), texts, ignore_merges=True).save(arguments[1])
    else:
        tokenizer, text = Tokenizer.from_file(arguments[1]), Path(arguments[2]).read_bytes().decode()
        start = time.perf_counter()
        tokens = ids(tokenizer, text)
        seconds = time.perf_counter() - start
        print(f"{len(tokens)} ids, {len(text.encode()) / seconds / 1e6:.2f} MB/s", file=sys.stderr)
        Path(arguments[0]).write_bytes(b"".join(i.to_bytes(4, "little") for i in tokens))


main(sys.argv[1:])
