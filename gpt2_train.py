"""Train a GPT-2.

    python gpt2_train.py                        a small model on Python's documentation, in minutes
    python gpt2_train.py --resume runs/tiny     go on after an interruption
    python gpt2_train.py --preset gpt2 --data tinyshakespeare --batch-size 4 --seq-len 64

The model is in models/gpt2.py, the loop in train.py.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import train


def main() -> None:
    train.main("gpt2")
