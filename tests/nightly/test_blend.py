"""The blend: its ends are the two rankers, and the fit is never worse than either."""

import numpy as np
import pytest

from allmrec.core.shard_tasks import Report, read_reports
from allmrec.nightly.blend import METRIC, WEIGHTS, FitShards, best_weight, blended
from tests.evaluation.tiny import NUM_SHARDS


def test_a_blend_is_a_distribution_between_the_two() -> None:
    llm_BC = np.log([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0001]]).astype(np.float32)
    llm_BC[1, 2] = -np.inf  # no candidate
    teacher_BC = np.array([[-3.0, 2.0, 9.0], [5.0, 1.0, 99.0]], dtype=np.float32)
    for weight in (0.0, 0.5, 1.0):
        mixed = np.exp(blended(llm_BC, teacher_BC, weight))
        np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-4)
        assert mixed[1, 2] == 0
    assert (
        blended(llm_BC, teacher_BC, 1).argmax(axis=1)[0] == 0 and blended(llm_BC, teacher_BC, 0).argmax(axis=1)[0] == 2
    )
    assert blended(llm_BC, teacher_BC, 0.1)[1, 0] > blended(llm_BC, teacher_BC, 0.1)[1, 1], "the teacher decides a tie"


def test_the_fitted_weight_is_never_worse_than_either(tiny_bundle) -> None:
    config, run, version = tiny_bundle
    fit = FitShards(run, version, config.llm, config.seed)
    reports = list(read_reports(fit({"id": np.arange(NUM_SHARDS)})))
    found = best_weight(reports)
    means = found[METRIC]
    assert found == best_weight(reports[::-1]), "the order of shards tells nothing"
    assert means[str(found["weight"])] == max(means.values()) >= max(means["0.0"], means["1.0"])
    assert found["cases"] > 0 and len(means) == len(WEIGHTS)
    with pytest.raises(ValueError, match="no validation case"):
        best_weight([Report()])
