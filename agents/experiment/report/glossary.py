"""The words that the report explains where they occur, for a reader who knows no statistics. docs/glossary.md has more."""

from __future__ import annotations

WORDS = {
    "agent": "A program that chooses which teachers the student learns from: a learnt policy, or a fixed rule.",
    "control": "All teachers for every instance, from the same warm start, on the same batches, for the same number of "
    "student steps; the baseline of every comparison.",
    "dev": "Labelled data for model selection: the best checkpoint of a run is chosen on it.",
    "ECE": "Expected calibration error: how far the student's probabilities are from its accuracy.",
    "F1": "The balance of precision and recall: 1 is perfect, 0 is useless.",
    "gain": "How much the student improved on the reward split.",
    "instance": "One example: a text and its label.",
    "interval": "A 95 % interval: the range in which the true value probably lies. If the interval of a difference contains "
    "zero, no difference is shown.",
    "IQM": "Interquartile mean: the mean without the best and the worst quarter of the runs.",
    "loss": "Cross-entropy: how little probability is given to the correct labels. Lower is better.",
    "nat": "Unit of the loss, with the natural logarithm.",
    "points": "Percentage points: from 80 % to 82 % are two points.",
    "precision": "Of the instances that get a label, the share for which it is right.",
    "recall": "Of the instances that have a label, the share that get it.",
    "reward split": "Labelled data on which the student's gains are measured. The student never trains on it.",
    "seed": "One repetition of the experiment. It sets the order of the batches and all other random numbers.",
    "student": "The small model that is trained.",
    "teacher": "A large classifier that does not change; the student learns from its probabilities.",
    "test": "Labelled data that is read once, at the end.",
    "upper bound": "A rule that knows what nobody knows in use, such as the right teacher. It shows what could be reached.",
    "warm start": "The student after distillation from the average of all teachers; every compared run starts there.",
}


def anchor(word: str) -> str:
    """Where the page explains a word."""
    return "word-" + word.lower().replace(" ", "-")
