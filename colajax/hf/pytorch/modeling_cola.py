"""Cola DLM, the whole model: the text VAE of cola_vae/, the prior of cola_dit/, and generation."""

import os

from transformers import GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from .configuration_cola import ColaConfig
from .generation_cola import ColaGeneration
from .modeling_cola_dit import ColaDiTModel
from .modeling_cola_text_vae import ColaTextVAEModel

PARTS = {"vae": ("cola_vae", ColaTextVAEModel), "dit": ("cola_dit", ColaDiTModel)}
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class ColaModel(ColaGeneration, PreTrainedModel):
    """model.vae encodes and decodes, model.dit is the prior, model.generate() writes."""

    config_class = ColaConfig
    main_input_name = "input_ids"

    def __init__(self, config, vae, dit):
        super().__init__(config)
        self.vae, self.dit = vae, dit
        self.generation_config = GenerationConfig()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, config=None, **kwargs):
        """Both parts, each with every tensor and no other; kwargs (dtype, device_map, ...) go to each."""
        hub = {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}
        config = config or ColaConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        parts = {}
        for name, (subfolder, part) in PARTS.items():
            parts[name], loading = part.from_pretrained(
                pretrained_model_name_or_path, subfolder=subfolder, output_loading_info=True, **kwargs
            )
            for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
                if loading[problem]:
                    raise ValueError(f"{subfolder}: {problem.replace('_', ' ')}: {sorted(loading[problem])}")
        model = cls(config, **parts)
        model.generation_config = GenerationConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        return model.eval()

    def save_pretrained(self, save_directory, **kwargs):
        """The same layout again, these classes included, without the tokenizer."""
        os.makedirs(save_directory, exist_ok=True)
        custom_object_save(self, save_directory, config=self.config)
        for name, (subfolder, _) in PARTS.items():
            getattr(self, name).save_pretrained(os.path.join(save_directory, subfolder), **kwargs)
        self.config.save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)

    def forward(self, input_ids):
        """Logits of the input, from the means of its latents: the VAE's reconstruction. `generate` writes."""
        return self.vae(input_ids)


ColaModel.register_for_auto_class("AutoModel")
