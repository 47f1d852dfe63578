"""SmolLM2-135M-Instruct, a pretrained model for two CPU cores, with questions that it can partly answer."""
