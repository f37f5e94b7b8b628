"""Write numbers.jsonl: GSM8K's problems with a question about the numbers in their text.

python -m studies.numbers gsm8k/train.jsonl numbers.jsonl     from openai/grade-school-math
python train.py +experiment=numbers data.path=numbers.jsonl

SmolLM2-135M solves too few GSM8K problems to compare filters on them: nearly all its candidates are wrong. The question
about numbers has the same text and one right answer. A third of the model's samples give this answer.
"""

import argparse
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

ROWS = 1200
MAX_CHARACTERS = 350  # longer problems cost time
NUMBER = re.compile(r"(?<![\w.,/])\d+(?:,\d{3})*(?:\.\d+)?(?![\w/]|[.,]\d)")
QUESTION = "List the numbers in this text. Which one is the second largest?"


def row(problem: str) -> dict[str, str] | None:
    """Return prompt, target and answer; None for a long problem, equal numbers, or not three to five numbers."""
    numbers = NUMBER.findall(problem)
    by_value = {float(number.replace(",", "")): number for number in numbers}
    if len(problem) > MAX_CHARACTERS or len(by_value) != len(numbers) or not 3 <= len(numbers) <= 5:
        return None
    second = by_value[sorted(by_value)[-2]]
    listed = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    target = f"The numbers are {listed}. The second largest is {second}."
    return {"prompt": f"{problem}\n\n{QUESTION}", "target": target, "answer": second}


def rows(problems: Iterable[str], limit: int = ROWS) -> list[dict[str, str]]:
    """Return the first `limit` rows in a shuffled order, the same on every machine."""
    usable = [record for problem in problems if (record := row(problem))]
    random.Random(0).shuffle(usable)
    return usable[:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gsm8k", type=Path, help="GSM8K's train.jsonl, with the key `question` in each row")
    parser.add_argument("out", type=Path, help="the file to write")
    args = parser.parse_args()
    problems = [json.loads(line)["question"] for line in args.gsm8k.read_text(encoding="utf-8").splitlines()]
    records = rows(problems)
    args.out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    print(f"{args.out}: {len(records)} rows of {len(problems)} problems")


if __name__ == "__main__":
    main()
