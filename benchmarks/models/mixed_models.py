"""Tiny models of the benchmark with experts, with state-space or convolution layers, or with a vision tower."""

from __future__ import annotations

from benchmarks.models.architecture import COMMON, GROUPED, HEADS, IDS, VOCABULARY, Architecture

GEMMA3 = {**HEADS, "query_pre_attn_scalar": 32, "sliding_window": 64}
QWEN3_5 = {
    **HEADS,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
SIGLIP = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"hidden_size": 64, "intermediate_size": 128, "depth": 1, "num_heads": 2, "out_hidden_size": 128}


MIXED = (
    Architecture(
        "granitemoe",
        "GraniteMoeConfig",
        {**GROUPED, "logits_scaling": 6.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    Architecture(
        "granitemoehybrid",
        "GraniteMoeHybridConfig",
        {
            **GROUPED,
            "logits_scaling": 6.0,
            "num_local_experts": 0,
            "shared_intermediate_size": 256,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
        },
    ),
    Architecture(
        "falcon_h1",
        "FalconH1Config",
        {
            **GROUPED,
            "head_dim": 32,
            "mamba_d_ssm": 128,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "lm_head_multiplier": 0.5,
            "mamba_n_groups": 1,
        },
    ),
    Architecture(
        "qwen2_moe",
        "Qwen2MoeConfig",
        {
            **GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        },
    ),
    Architecture(
        "qwen3_moe",
        "Qwen3MoeConfig",
        {**HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    Architecture("olmoe", "OlmoeConfig", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    Architecture(
        "mixtral",
        "MixtralConfig",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    Architecture("phimoe", "PhimoeConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture(
        "gpt_oss",
        "GptOssConfig",
        {
            **HEADS,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    Architecture(
        "glm4_moe",
        "Glm4MoeConfig",
        {
            **HEADS,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    Architecture(
        "deepseek_v2",
        "DeepseekV2Config",
        {
            **COMMON,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "topk_method": "greedy",
            "n_shared_experts": 1,
        },
    ),
    Architecture(
        "deepseek_v3",
        "DeepseekV3Config",
        {
            **COMMON,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": 48,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "topk_method": "noaux_tc",
            "n_shared_experts": 1,
        },
    ),
    Architecture(
        "lfm2",
        "Lfm2Config",
        {
            **GROUPED,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "conv_dim": 128,
        },
    ),
    Architecture(
        "qwen3_next",
        "Qwen3NextConfig",
        {
            **HEADS,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    Architecture(
        "qwen3_5",
        "Qwen3_5TextConfig",
        {
            **HEADS,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    Architecture(
        "jamba",
        "JambaConfig",
        {
            **GROUPED,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 16,
        },
    ),
    Architecture(
        "mamba2",
        "Mamba2Config",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 32,
            "state_size": 16,
            "n_groups": 1,
        },
    ),
    Architecture(
        "ernie4_5_moe",
        "Ernie4_5_MoeConfig",
        {
            **GROUPED,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 64,
            "moe_layer_start_index": 1,
            "moe_num_shared_experts": 1,
        },
    ),
    Architecture(
        "minimax_m2", "MiniMaxM2Config", {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 16}
    ),
    Architecture(
        "llama4",
        "Llama4TextConfig",
        {
            **HEADS,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 256,
            "interleave_moe_layer_step": 1,
        },
    ),
    Architecture(
        "dbrx",
        "DbrxConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 128,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 512,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 256, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    Architecture(
        "gemma3_vision",
        "Gemma3Config",
        {"text_config": GEMMA3, "vision_config": SIGLIP, "mm_tokens_per_image": 4, **IDS},
    ),
    Architecture("qwen3_5_vision", "Qwen3_5Config", {"text_config": QWEN3_5, "vision_config": QWEN_VISION, **IDS}),
)
