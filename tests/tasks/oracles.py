"""Every program and noise sequence of each task, listed by its definition in plain Python; nothing of the engine is imported."""

import hashlib
import itertools
import math
from fractions import Fraction

import torch


def rollout(step, start, length):
    sequence = [start]
    while len(sequence) < length:
        sequence.append(step(sequence[-1]))
    return tuple(sequence)


def linear(p, length):
    rules = itertools.product(range(p), repeat=3)
    return [rollout(lambda x, a=a, b=b: (a * x + b) % p, start, length) for a, b, start in rules]


def uniform(p, length):
    return list(itertools.product(range(p), repeat=length))


def recurrence(p, length):
    return linear(p, length), uniform(p, length)


def quadratic(p, length):
    rules = itertools.product(range(p), repeat=2)
    return [rollout(lambda x, b=b: (x * x + b) % p, start, length) for b, start in rules], uniform(p, length)


def backward(p, length):
    return [sequence[::-1] for sequence in linear(p, length)], uniform(p, length)


def shuffled(p, length):
    orders = list(itertools.permutations(range(length // 3)))
    programs = [sum((sequence[3 * place : 3 * place + 3] for place in order), ()) for sequence in linear(p, length) for order in orders]
    return programs, uniform(p, length)


def opaque(p, length):
    labels, body = list(itertools.permutations(range(p))), length - p - 1

    def behind_headers(sequences):
        return [(*label, p, *(label[x] for x in sequence)) for label in labels for sequence in sequences]

    return behind_headers(linear(p, body)), behind_headers(uniform(p, body))


def heldout(p, length, bucket):
    def kept(sequence):
        digest = hashlib.sha256(f"{sequence[0]},{sequence[1]},{sequence[2]}".encode()).digest()
        return sequence[0] == sequence[1] or int.from_bytes(digest[:8], "big") % 5 != bucket

    return [list(filter(kept, sequences)) for sequences in recurrence(p, length)]


def answers(programs, noise, sequence, prior, vocabulary, p):
    """At each position: (class posterior, predictive, forced token or None), by counting the listed sequences that agree.

    `programs` and `noise` are [n, T] tensors of equally likely sequences; noise None is uniform over p symbols.
    """
    counts = len(programs), None if noise is None else len(noise)
    for position in range(1, len(sequence)):
        programs = programs[programs[:, position - 1] == sequence[position - 1]]
        by_program = [Fraction(n, counts[0]) for n in torch.bincount(programs[:, position], minlength=vocabulary).tolist()]
        if noise is None:
            by_noise = [Fraction(int(v < p), p ** (position + 1)) for v in range(vocabulary)]
        else:
            noise = noise[noise[:, position - 1] == sequence[position - 1]]
            by_noise = [Fraction(n, counts[1]) for n in torch.bincount(noise[:, position], minlength=vocabulary).tolist()]
        joint = [prior * left + (1 - prior) * right for left, right in zip(by_program, by_noise, strict=True)]
        total = sum(joint)
        possible = [v for v in range(vocabulary) if by_program[v]]
        yield prior * sum(by_program) / total, [value / total for value in joint], possible[0] if len(possible) == 1 else None


def check(posterior, tokens, programs, noise, prior, vocabulary, p, header=0):
    """Hold a Posterior to the oracle in every field, to 1e-12."""
    for row, sequence in enumerate(tokens.tolist()):
        for column, (weight, predictive, forced) in enumerate(answers(programs, noise, sequence, prior, vocabulary, p)):
            where = f"sequence {sequence}, position {column + 1}"
            assert abs(posterior.program_weight[row, column].item() - float(weight)) < 1e-12, where
            expected = torch.tensor([float(value) for value in predictive], dtype=torch.float64)
            found = posterior.predictive[row, column]
            assert (found - expected).abs().max().item() < 1e-12, where
            entropy = -sum(float(value) * math.log2(value) for value in predictive if value)
            assert abs(posterior.entropy[row, column].item() - entropy) < 1e-11, where
            assert predictive[posterior.best[row, column]] == max(predictive), where
            if column >= header:
                assert posterior.forced[row, column].item() == (-1 if forced is None else forced), where
