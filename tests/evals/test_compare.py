"""The comparison: equal sizes, equal batches, a file that is read back, and rows that say what the records say."""

from dataclasses import replace

import pytest
import torch

from linrec.errors import ConfigError, UnknownNameError
from linrec.evals.compare.run import run_compare
from linrec.evals.compare.setting import MIXERS, configs, corpus_digest, jobs, make_setting
from linrec.evals.compare.show import COLUMNS, cells, summary
from linrec.evals.small import byte_config, layer_spec, parameters, state_bytes_after
from linrec.models.language_model import LanguageModel

pytest.importorskip("matplotlib")


def test_twelve_mixers_have_one_size_and_one_training():
    setting = make_setting("small")
    models = configs(setting, MIXERS)
    with torch.device("meta"):
        counts = [parameters(LanguageModel(config)) for config in models.values()]
    assert len(counts) >= 10 and max(counts) / min(counts) < 1.03
    planned = list(jobs(setting, models, range(2)))
    assert [job.mixer for job in planned[: len(models)]] == list(models)
    assert len({job.setting.training for job in planned}) == 1 and len(planned) == 2 * len(models)


def test_unknown_names_and_impossible_sizes_are_refused():
    with pytest.raises(UnknownNameError, match="no size"):
        make_setting("huge")
    with pytest.raises(ConfigError, match="parameters, the nearest"):
        configs(make_setting("small"), ["mamba2:expand=32"])
    with pytest.raises(ConfigError, match="option=value"):
        layer_spec("gla:conv_size")
    assert layer_spec("canon+gla:a=true,b=x") == (("canon", "gla"), {"gla": {"a": True, "b": "x"}})


def test_a_row_is_the_mean_and_range_of_its_seeds():
    run = {"kind": "run", "mixer": "gla", "parameters": 10, "config": {"d_model": 8, "mlp_ratio": 2.0}}
    worse = [{**run, "bits_per_byte": {"windows": w, "carried": 1.0}} for w in (3.0, 4.0)]
    better = {**run, "mixer": "s4d", "bits_per_byte": {"windows": 2.5, "carried": 2.25}}
    costs = {"train_tokens_per_second": 7.4, "decode_tokens_per_second": 3.0, "state_bytes": 64}
    rows = summary([*worse, better, {"kind": "cost", "rows": {"gla": costs}}])
    first, second = (dict(zip(COLUMNS, row, strict=True)) for row in cells(rows))
    assert first["mixer"] == "s4d" and first["state bytes"] is None
    assert second["bits/byte, windows"] == "3.500" and second["lowest, highest"] == "3.000 4.000"
    assert (second["seeds"], second["train tokens/s"], second["state bytes"]) == (2, 7, 64)


def test_state_bytes_grow_for_attention_alone():
    sizes = {
        layer: state_bytes_after(LanguageModel(byte_config((layer,), d_model=16, num_heads=1)), [8, 24])
        for layer in ("softmax_attention", "linear_attention")
    }
    assert sizes["linear_attention"][0] == sizes["linear_attention"][1]
    assert sizes["softmax_attention"][1] - sizes["softmax_attention"][0] >= 16 * 2 * 16 * 4  # keys and values


@pytest.mark.slow
def test_what_is_on_file_is_not_run_again(tmp_path):
    setting = make_setting("small", steps=1)
    training = replace(setting.training, batch_size=1, seq_len=32)
    base = byte_config(("softmax_attention",), d_model=16, num_heads=1)
    setting = replace(setting, base=base, training=training, documents=1, document_bytes=1000, context=64)
    rows = run_compare(setting, tmp_path, mixers=["gla"], seeds=[0], progress=False)
    path = tmp_path / "compare.jsonl"
    before = path.read_text()
    assert len(before.splitlines()) == 2 and 7 < rows[0]["windows"][0] < 9 and corpus_digest() in before
    run_compare(setting, tmp_path, mixers=["gla"], seeds=[0], progress=False)
    assert path.read_text() == before
    run_compare(setting, tmp_path, mixers=["gla"], seeds=[0, 1], progress=False)
    assert path.read_text().startswith(before) and len(path.read_text().splitlines()) == 3
    assert "data:image/png;base64" in (tmp_path / "compare.html").read_text()
