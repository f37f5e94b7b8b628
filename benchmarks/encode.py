"""Compare the embed stage with one call of `SentenceTransformer.encode` per prompt, as in the reference implementation.

    OMP_NUM_THREADS=1 python benchmarks/encode.py

Both use the same model and prompts, and alternate in every round. Each prompt has a target and N candidates. Texts are
random words with log-normal lengths. A fraction of the candidates repeats the first candidate of the same prompt.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from selfcontrast.engines.local import Local
from selfcontrast.filters.embed import CANDIDATES, TARGETS, Vectors, embed
from selfcontrast.filters.encode import BUILTIN, SentenceEncoder, builtin_folder

WORDS = ["the", "of", "a", "cat", "house", "river", "seven", "because", "under", "quickly", "yellow", "answer"]
Prompts = list[tuple[str, list[str]]]


def random_prompts(prompts: int, samples: int, words: float, spread: float, repeated: float) -> Prompts:
    """Build prompts whose texts have log-normal numbers of words, with median `words` and log-scale std `spread`."""
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(WORDS, max(1, round(float(rng.lognormal(np.log(words), spread))))))

    result: Prompts = []
    for _ in range(prompts):
        texts = [text() for _ in range(samples)]
        for i in np.flatnonzero(rng.random(samples) < repeated):
            texts[i] = texts[0]
        result.append((text(), texts))
    return result


def by_prompt(prompts: Prompts, max_tokens: int, device: str) -> np.ndarray:
    """Return the candidates' vectors [n, d] from one call of `encode` per prompt."""
    model = SentenceTransformer(str(builtin_folder()), device=device, model_kwargs={"use_safetensors": True})
    model.max_seq_length = max_tokens
    calls = [
        model.encode([target, *texts], normalize_embeddings=True, show_progress_bar=False) for target, texts in prompts
    ]
    return np.concatenate([vectors[1:] for vectors in calls])


def by_stage(prompts: Prompts, encoder: SentenceEncoder, device: str) -> np.ndarray:
    """Run the stage, and return the candidates' vectors [n, d] as read from its files."""
    with tempfile.TemporaryDirectory() as folder:
        embed(Path(folder), encoder, Local(64, 4096), prompts, device)
        vectors = Vectors(Path(folder) / CANDIDATES)
        assert len(Vectors(Path(folder) / TARGETS)) == len(prompts)
        return vectors[0 : len(vectors)]


def timed(run: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Return wall-clock seconds, CPU seconds, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--words", type=float, default=40, help="median number of words in a text")
    parser.add_argument(
        "--spread", type=float, default=0.7, help="standard deviation of the logarithm of the number of words"
    )
    parser.add_argument("--repeated", type=float, default=0.05)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    prompts = random_prompts(args.prompts, args.samples, args.words, args.spread, args.repeated)
    encoder = SentenceEncoder(BUILTIN, None, "", None, "float32", args.max_tokens, "cut", False, args.batch_size, [])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {args.device}, {args.prompts} prompts")
    by_prompt(prompts[:1], args.max_tokens, args.device)  # warm-up
    by_stage(prompts[:1], encoder, args.device)
    ratios = []
    for _ in range(args.rounds):
        per_prompt = timed(lambda: by_prompt(prompts, args.max_tokens, args.device))
        stage = timed(lambda: by_stage(prompts, encoder, args.device))
        ratios.append((per_prompt[0] / stage[0], per_prompt[1] / stage[1]))
        error = float(np.abs((per_prompt[2] * stage[2]).sum(1) - 1).max())
        print(
            f"once per prompt {per_prompt[0]:.1f} s ({per_prompt[1]:.1f} s CPU), "
            f"stage {stage[0]:.1f} s ({stage[1]:.1f} s), "
            f"{ratios[-1][0]:.2f}x ({ratios[-1][1]:.2f}x); cosines off by {error:.0e}"
        )
    clock, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median: {clock:.2f}x by the clock, {cpu:.2f}x of CPU time")


if __name__ == "__main__":
    main()
