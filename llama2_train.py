"""Train a Llama 2.

    python llama2_train.py          a small model on Python's documentation, in minutes
    python llama2_train.py --resume runs/llama-tiny
    python llama2_train.py --preset stories15M --data tinystories --batch-size 16
    python llama2_train.py --init-from stories15M.bin --data my_stories --lr 1e-4

The model is in models/llama2.py, the loop in train.py.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import train


def main() -> None:
    train.main("llama2")
