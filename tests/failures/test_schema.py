"""Schema: which layers have an indexer, which projections have a bias. Both directions close."""

from __future__ import annotations

from tests.failures.conftest import Sound


def test_a_checkpoint_with_shared_indexers_under_a_config_without_is_one_finding_that_names_the_layers(
    sound: Sound,
) -> None:
    found = sound("glm-5.2-fp8").config(index_topk_freq=1, index_skip_topk_offset=2).only(4)
    assert (found.code, found.tensor) == ("tensor-missing", "model.layers.3.self_attn.indexer.*")
    assert "the same in layers 4-5, 7" in found.message
    assert found.ranks == (1, 2, 3)


def test_surplus_indexers_under_a_config_that_shares_them_are_left_over_a_module_at_a_time(sound: Sound) -> None:
    found = sound("glm-5.1-fp8").config(index_topk_freq=4, index_skip_topk_offset=3).only(4)
    assert (found.code, found.tensor, found.ranks) == ("tensor-unexpected", "model.layers.3.self_attn.indexer.*", (3,))
    assert "7 tensors" in found.message


def test_one_surplus_indexer_is_one_finding(sound: Sound) -> None:
    found = sound("glm-5.2-fp8").copy(r"layers\.2\.self_attn\.indexer", "layers.4.self_attn.indexer").only(2)
    assert (found.code, found.tensor) == ("tensor-unexpected", "model.layers.4.self_attn.indexer.*")


def test_phantom_biases_are_left_over_and_those_a_config_promises_in_vain_are_missing(sound: Sound) -> None:
    surplus = sound("llama").copy(r"^(model\.layers\.\d\.self_attn\.q_proj)\.weight", r"\1.bias").prove(2).findings
    assert {f.code for f in surplus} == {"tensor-unexpected"}
    assert all(str(f.tensor).endswith("q_proj.bias") for f in surplus)


def test_biases_that_a_config_promises_in_vain_are_one_finding_a_projection(sound: Sound) -> None:
    missing = sound("llama").config(attention_bias=True).prove(2).findings
    assert [(f.code, f.tensor) for f in missing] == [
        ("tensor-missing", f"model.layers.0.self_attn.{part}_proj.bias") for part in "qkvo"
    ]
    assert all("and 3 more like it" in f.message for f in missing)


def test_norms_of_queries_and_keys_under_the_wrong_architecture_are_found_in_both_directions(sound: Sound) -> None:
    surplus = sound("qwen3").config(architectures=["LlamaForCausalLM"]).prove(2).findings
    assert {(f.code, str(f.tensor).split(".")[4]) for f in surplus} == {
        ("tensor-unexpected", "q_norm"),
        ("tensor-unexpected", "k_norm"),
    }
    missing = sound("llama").config(architectures=["Qwen3ForCausalLM"]).prove(2).findings
    assert {(f.code, str(f.tensor).split(".")[4]) for f in missing} == {
        ("tensor-missing", "q_norm"),
        ("tensor-missing", "k_norm"),
    }


def test_a_config_of_another_size_is_one_finding_and_not_one_a_tensor(sound: Sound) -> None:
    found = sound("qwen3").config(hidden_size=192, intermediate_size=320).prove(2).findings
    assert [f.code for f in found] == ["shape-mismatch"]
    assert "from the config" in found[0].message


def test_a_resized_vocabulary_is_found_at_embedding_and_head_each_on_its_stage(sound: Sound) -> None:
    found = sound("qwen3").config(vocab_size=384).prove(2).findings
    assert [(f.code, f.tensor, f.ranks) for f in found] == [
        ("shape-mismatch", "model.embed_tokens.weight", (0,)),
        ("shape-mismatch", "lm_head.weight", (1,)),
    ]
