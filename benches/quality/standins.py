"""Made-up traces in the formats of the recorded ones, for when those are not there.

They have about the lengths and the sharing that were recorded, and no more: a table made with them says so. The same
seed writes the same file.
"""

import json
import math
import random

# Mooncake's conversations: one shared system prompt, then turns that each carry all that was said before.
BLOCK = 512  # tokens that one hash stands for
HOUR_MS = 3_600_000
CONVERSATIONS = 4_000  # with 3 turns on average: 12,000 requests an hour, as recorded
MEAN_TURNS = 3.0
QUESTION = (7_000, 9_000)  # mean and deviation of the first prompt, in tokens; recorded prompts have 12,000 on average
FOLLOW_UP = (2_000, 2_500)
ANSWER = (340, 250)
PAUSE_MS = (20_000, 180_000)

# Azure's chat: mean and deviation of prompt and answer, in tokens, as recorded.
AZURE_PROMPT = (1_155, 1_100)
AZURE_ANSWER = (211, 163)
AZURE_ROWS = 19_000


def log_normal(rng, mean, deviation):
    """A whole number of tokens with this mean and deviation, at least one."""
    variance = math.log1p((deviation / mean) ** 2)
    return max(1, round(math.exp(rng.gauss(math.log(mean) - variance / 2, math.sqrt(variance)))))


def conversations(path, seed=1):
    """An hour of conversations in Mooncake's format."""
    rng = random.Random(seed)
    next_hash = 1
    requests = []
    for _ in range(CONVERSATIONS):
        at, tokens, hashes = rng.uniform(0, HOUR_MS), BLOCK + log_normal(rng, *QUESTION), [0]
        while at < HOUR_MS:
            answer = log_normal(rng, *ANSWER)
            # The last block is partly filled; the next turn fills it, which makes it another.
            whole = tokens // BLOCK
            while len(hashes) < whole:
                hashes.append(next_hash)
                next_hash += 1
            asked = list(hashes)
            if tokens % BLOCK:
                asked.append(next_hash)
                next_hash += 1
            requests.append({"timestamp": int(at // 3_000) * 3_000, "input_length": tokens, "output_length": answer, "hash_ids": asked})
            if rng.random() < 1 / MEAN_TURNS or tokens > 100_000:
                break
            at += rng.uniform(*PAUSE_MS)
            tokens += answer + log_normal(rng, *FOLLOW_UP)
    requests.sort(key=lambda it: it["timestamp"])
    path.write_text("".join(json.dumps(it) + "\n" for it in requests))


def lengths(path, seed=1):
    """Lengths in Azure's format; the lab draws its own arrivals."""
    rng = random.Random(seed)
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for nth in range(AZURE_ROWS):
        seconds = nth * 3_600 / AZURE_ROWS
        clock = f"{int(seconds // 60):02}:{seconds % 60:010.7f}"
        rows.append(f"2023-01-01 00:{clock},{log_normal(rng, *AZURE_PROMPT)},{log_normal(rng, *AZURE_ANSWER)}")
    path.write_text("\n".join(rows) + "\n")
