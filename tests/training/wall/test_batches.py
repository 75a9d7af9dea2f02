"""Several next tokens at a prefix: the shares are draws from the exact predictive, and training on them aims where training on one does."""

import numpy as np
import torch

from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall.batches import DRAW, draw_block, draw_continuations

TASK = RecurrenceTask(modulus=5, length=8)


def block(continuations=1, whole=False, number=3):
    return draw_block(TASK, 7, number, 4, slice(0, 5), continuations, whole)


def test_shares_are_counts_of_possible_tokens():
    predictive = torch.tensor([[[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]])
    shares = draw_continuations(predictive, 8, np.random.default_rng(0))
    assert shares.shape == (1, 2, 3)
    assert shares[0, 0].tolist() == [0.0, 1.0, 0.0]
    assert shares[0, 1, 1] == 0.0
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 2), rtol=0, atol=1e-7)
    assert torch.equal(shares * 8, (shares * 8).round())


def test_their_mean_is_the_predictive():
    """Mean of n draws lies within 5 standard errors, sqrt(q (1 - q) / n), of each probability q."""
    predictive = torch.tensor([[[0.1, 0.2, 0.7]]])
    number = 20_000
    shares = draw_continuations(predictive, number, np.random.default_rng(1))
    assert ((shares - predictive).abs() <= 5 * (predictive * (1 - predictive) / number).sqrt()).all()


def test_one_continuation_leaves_the_sequences_own_tokens_and_draws_the_same_sequences():
    single, several = block(), block(continuations=16)
    assert single.next_tokens is None
    assert single.posterior is None
    assert torch.equal(single.tokens, several.tokens)
    assert several.next_tokens.shape == (DRAW * 4, 5, 5)


def test_a_block_is_drawn_again_the_same_and_differs_from_the_next():
    assert torch.equal(block(16).next_tokens, block(16).next_tokens)
    assert not torch.equal(block(16).tokens, block(16, number=4).tokens)


def test_rows_of_a_step():
    whole = block(16, whole=True)
    part = whole.rows(DRAW * 3 + 2, 4)
    assert torch.equal(part.tokens, whole.tokens[8:12])
    assert torch.equal(part.next_tokens, whole.next_tokens[8:12])
    torch.testing.assert_close(part.posterior.predictive, TASK.posterior(whole.tokens[8:12], torch.float32).predictive, rtol=0, atol=1e-6)


def test_no_token_is_drawn_that_the_task_rules_out():
    drawn = block(16, whole=True)
    assert (drawn.next_tokens[drawn.posterior.predictive[:, :5] == 0] == 0).all()
    sample = TASK.sample(DRAW * 4, generator(7, "data", 3))
    assert torch.equal(sample.tokens, drawn.tokens)
