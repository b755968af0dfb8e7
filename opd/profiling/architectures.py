"""Neural networks of variants, built with random weights for latency measurements.

The time of a forward pass depends on the layers and on the shape of the input, not on the values of the weights.
Nothing is downloaded: every network is built from its published configuration. The content of a request is fixed,
realistic for the pipelines that ship with the package, and the same for every variant of a task:

========================  ==================================================================================
task                      one request
========================  ==================================================================================
detection                 one 640 x 640 RGB image, the size D-FINE's published accuracy refers to
classification            one 224 x 224 RGB crop
speech recognition        5 s of speech at 16 kHz: 500 frames of 80 filter banks for S2T, which writes 20
                          tokens, or 80,000 samples for wav2vec 2.0, which labels all frames in one pass
question answering        256 tokens: a question and its context, padded to that length
sentiment                 32 tokens: the transcript of 5 s of speech
summarisation             a document of 128 tokens, a summary of 20 tokens
language identification   48 tokens
translation               a source of 48 tokens, a translation of 20 tokens
========================  ==================================================================================

Text is generated greedily and always to the full number of new tokens: a random network does the work of a trained
one. Only torch and transformers are needed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from transformers.initialization import no_init_weights

IMAGE_PIXELS_DETECTION = 640
IMAGE_PIXELS_CLASSIFICATION = 224
SPEECH_SECONDS = 5
SAMPLING_RATE = 16_000
FILTER_BANK_FRAMES = SPEECH_SECONDS * 100
TOKENS_QUESTION = 256
TOKENS_SENTIMENT = 32
TOKENS_DOCUMENT = 128
TOKENS_LANGUAGE = 48
TOKENS_SOURCE = 48
NEW_TOKENS = 20

CONTAINER_SECONDS = 2.0
"""Seconds to schedule a container and to import the server, which no measurement of a network includes."""

FIRST_ORDINARY_TOKEN = 1000
"""Lowest token id in random text; lower ids include padding, start and end of sequence."""


@dataclass(frozen=True)
class Architecture:
    """A network and the requests it serves, as :class:`opd.profiling.measuring.Measurable`.

    Attributes:
        build: creates the network with random weights.
        inputs: creates the keyword arguments of one call for a number of requests.
        new_tokens: tokens to generate; 0 where one forward pass is the whole inference.
        clock: CPU seconds of the calling thread, by which a call is timed.
        pause: seconds between two calls.
        max_cores: cores that the network can use.
    """

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[int], dict[str, torch.Tensor]]
    new_tokens: int = 0
    clock = staticmethod(time.thread_time)
    pause: ClassVar[float] = 0.0
    max_cores: ClassVar[int] = sys.maxsize

    @staticmethod
    def fingerprint() -> str:
        """The name of an architecture says everything."""
        return ""

    @staticmethod
    def memory_mb(model: torch.nn.Module) -> None:
        """No process of its own serves the network."""

    @contextmanager
    def loaded(self, seed: int) -> Iterator[tuple[torch.nn.Module, float]]:
        """Load the network as a serving process does, and time it.

        Random weights are first written to a temporary file. The measured time is that of constructing the network
        without initialising it, reading the file and answering one request, on one core. The file comes from the page
        cache, as on a node that already holds the model. :data:`CONTAINER_SECONDS` are added.

        Args:
            seed: of the weights, and of the inputs made later.

        Yields:
            The network, and the seconds of its start: CPU time of the calling thread, and the container's.
        """
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder, self.threads(1):
            path = Path(folder, "weights.pt")
            torch.save(self.build().state_dict(), path)
            inputs = self.inputs(1)
            start = time.thread_time()
            with no_init_weights():
                model = self.build().eval()
            model.load_state_dict(torch.load(path, weights_only=True, mmap=True))
            self.infer(model, inputs)
            seconds = time.thread_time() - start
        yield model, CONTAINER_SECONDS + seconds

    @staticmethod
    @contextmanager
    def threads(count: int) -> Iterator[None]:
        """Let torch use ``count`` threads within the block."""
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def infer(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
        """Call ``model`` once on a batch created by :attr:`inputs`."""
        with torch.inference_mode():
            if not self.new_tokens:
                return model(**inputs)
            return model.generate(  # type: ignore[operator]
                **inputs, do_sample=False, num_beams=1, min_new_tokens=self.new_tokens, max_new_tokens=self.new_tokens
            )


def _image(pixels: int) -> Callable[[int], dict[str, torch.Tensor]]:
    return lambda batch_size: {"pixel_values": torch.rand(batch_size, 3, pixels, pixels)}


def _text(tokens: int, vocabulary: int) -> Callable[[int], dict[str, torch.Tensor]]:
    def inputs(batch_size: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(FIRST_ORDINARY_TOKEN, vocabulary, (batch_size, tokens))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return inputs


def _filter_banks(batch_size: int) -> dict[str, torch.Tensor]:
    features = torch.randn(batch_size, FILTER_BANK_FRAMES, 80)
    return {"input_features": features, "attention_mask": torch.ones(batch_size, FILTER_BANK_FRAMES, dtype=torch.long)}


def _waveform(batch_size: int) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(batch_size, SPEECH_SECONDS * SAMPLING_RATE)}


def _d_fine(
    stem: tuple[int, int], stage_width: int, blocks: tuple[int, ...], block_layers: int, affine: bool, **head: Any
) -> Architecture:
    """D-FINE with its HGNetV2 backbone, configured as the published checkpoint of that size.

    Args:
        stem: channels inside and after the stem.
        stage_width: channels after the first stage; the later stages have 4, 8 and 16 times as many.
        blocks: blocks of the four stages.
        block_layers: convolutions in a block.
        affine: include the learnable affine layers of the small backbones.
        head: encoder and decoder settings of :class:`transformers.DFineConfig`.
    """
    widths = [stage_width, 4 * stage_width, 8 * stage_width, 16 * stage_width]
    levels = head.get("num_feature_levels", 3)
    outputs: dict[str, Any] = dict(out_indices=[2, 3, 4][-levels:])
    backbone = transformers.HGNetV2Config(
        hidden_sizes=widths,
        stem_channels=[3, *stem],
        stage_in_channels=[stem[1], *widths[:3]],
        stage_mid_channels=[stem[1], 2 * stem[1], 4 * stem[1], 8 * stem[1]],
        stage_out_channels=widths,
        stage_num_blocks=list(blocks),
        stage_numb_of_layers=[block_layers] * 4,
        use_learnable_affine_block=affine,
        **outputs,
    )
    head.update(num_labels=80, encoder_in_channels=widths[-levels:])
    config = transformers.DFineConfig(backbone_config=backbone, **head)
    return Architecture(lambda: transformers.DFineForObjectDetection(config), _image(IMAGE_PIXELS_DETECTION))


def _resnet(depths: tuple[int, int, int, int], layer_type: str) -> Architecture:
    """ResNet of He et al. (2016): two 3 x 3 convolutions a block (``basic``) or a bottleneck of three."""
    widths = [64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048]
    classes: dict[str, Any] = dict(num_labels=1000)
    config = transformers.ResNetConfig(depths=list(depths), hidden_sizes=widths, layer_type=layer_type, **classes)
    return Architecture(lambda: transformers.ResNetForImageClassification(config), _image(IMAGE_PIXELS_CLASSIFICATION))


def _speech_to_text(width: int, heads: int) -> Architecture:
    """Speech-to-text transformer of Wang et al. (2020): 12 encoder and 6 decoder layers."""
    feed_forward = 2048 if width < 1024 else 4096
    config = transformers.Speech2TextConfig(
        vocab_size=10_000,
        d_model=width,
        encoder_layers=12,
        decoder_layers=6,
        encoder_ffn_dim=feed_forward,
        decoder_ffn_dim=feed_forward,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
    )
    return Architecture(lambda: transformers.Speech2TextForConditionalGeneration(config), _filter_banks, NEW_TOKENS)


def _wav2vec2_large() -> Architecture:
    """The large wav2vec 2.0 of Baevski et al. (2020) with its CTC head."""
    config = transformers.Wav2Vec2Config(
        vocab_size=32, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    return Architecture(lambda: transformers.Wav2Vec2ForCTC(config), _waveform)


def _encoder(model_class: Any, tokens: int, width: int, layers: int, **settings: Any) -> Architecture:
    """A BERT-like text encoder with a head; DistilBERT names its sizes differently."""
    heads = width // 64
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width)
    if model_class.config_class is transformers.DistilBertConfig:
        sizes = dict(dim=width, n_layers=layers, n_heads=heads, hidden_dim=4 * width)
    config = model_class.config_class(**{**sizes, **settings})
    return Architecture(lambda: model_class(config), _text(tokens, config.vocab_size))


def _distilbart(encoder_layers: int, decoder_layers: int) -> Architecture:
    """BART-large with layers removed (Shleifer and Rush, 2020)."""
    config = transformers.BartConfig(
        encoder_layers=encoder_layers, decoder_layers=decoder_layers, forced_eos_token_id=None
    )
    return Architecture(
        lambda: transformers.BartForConditionalGeneration(config), _text(TOKENS_DOCUMENT, config.vocab_size), NEW_TOKENS
    )


def _marian(width: int, vocabulary: int) -> Architecture:
    """OPUS-MT transformer, 6 encoder and 6 decoder layers (Tiedemann and Thottingal, 2020)."""
    config = transformers.MarianConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=6,
        decoder_layers=6,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        pad_token_id=vocabulary - 1,
        decoder_start_token_id=vocabulary - 1,
        forced_eos_token_id=None,
        activation_function="swish" if width == 512 else "relu",
    )
    return Architecture(lambda: transformers.MarianMTModel(config), _text(TOKENS_SOURCE, vocabulary - 1), NEW_TOKENS)


_ROBERTA = dict(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
_NANO = dict(
    num_feature_levels=2,
    encoder_hidden_dim=128,
    encoder_ffn_dim=512,
    encode_proj_layers=[1],
    d_model=128,
    decoder_ffn_dim=512,
    decoder_in_channels=[128, 128],
    decoder_n_points=[6, 6],
    feat_strides=[16, 32],
    depth_mult=0.5,
    decoder_layers=3,
    hidden_expansion=0.34,
)
_POINTS: dict[str, Any] = dict(decoder_n_points=[3, 6, 3])
_XLARGE = dict(encoder_hidden_dim=384, encoder_ffn_dim=2048, decoder_in_channels=[384, 384, 384], **_POINTS)

ARCHITECTURES: dict[str, Architecture] = {
    "d-fine-n": _d_fine((16, 16), 64, (1, 1, 2, 1), 3, True, **_NANO),
    "d-fine-s": _d_fine(
        (16, 16), 64, (1, 1, 2, 1), 3, True, decoder_layers=3, hidden_expansion=0.5, depth_mult=0.34, **_POINTS
    ),
    "d-fine-m": _d_fine((24, 32), 96, (1, 1, 3, 1), 4, True, decoder_layers=4, depth_mult=0.67, **_POINTS),
    "d-fine-l": _d_fine((32, 48), 128, (1, 1, 3, 1), 6, False, **_POINTS),
    "d-fine-x": _d_fine((32, 64), 128, (1, 2, 5, 2), 6, False, **_XLARGE),
    "resnet-18": _resnet((2, 2, 2, 2), "basic"),
    "resnet-34": _resnet((3, 4, 6, 3), "basic"),
    "resnet-50": _resnet((3, 4, 6, 3), "bottleneck"),
    "resnet-101": _resnet((3, 4, 23, 3), "bottleneck"),
    "resnet-152": _resnet((3, 8, 36, 3), "bottleneck"),
    "s2t-small": _speech_to_text(256, heads=4),
    "s2t-medium": _speech_to_text(512, heads=8),
    "s2t-large": _speech_to_text(1024, heads=16),
    "wav2vec2-large": _wav2vec2_large(),
    "bert-mini-qa": _encoder(transformers.BertForQuestionAnswering, TOKENS_QUESTION, 256, 4),
    "bert-small-qa": _encoder(transformers.BertForQuestionAnswering, TOKENS_QUESTION, 512, 4),
    "minilm-qa": _encoder(transformers.BertForQuestionAnswering, TOKENS_QUESTION, 384, 12, num_attention_heads=12),
    "tinyroberta-qa": _encoder(transformers.RobertaForQuestionAnswering, TOKENS_QUESTION, 768, 6, **_ROBERTA),
    "roberta-base-qa": _encoder(transformers.RobertaForQuestionAnswering, TOKENS_QUESTION, 768, 12, **_ROBERTA),
    "roberta-large-qa": _encoder(transformers.RobertaForQuestionAnswering, TOKENS_QUESTION, 1024, 24, **_ROBERTA),
    "bert-tiny": _encoder(transformers.BertForSequenceClassification, TOKENS_SENTIMENT, 128, 2),
    "bert-mini": _encoder(transformers.BertForSequenceClassification, TOKENS_SENTIMENT, 256, 4),
    "bert-small": _encoder(transformers.BertForSequenceClassification, TOKENS_SENTIMENT, 512, 4),
    "distilbert": _encoder(transformers.DistilBertForSequenceClassification, TOKENS_SENTIMENT, 768, 6),
    "roberta-base": _encoder(transformers.RobertaForSequenceClassification, TOKENS_SENTIMENT, 768, 12, **_ROBERTA),
    "roberta-large": _encoder(transformers.RobertaForSequenceClassification, TOKENS_SENTIMENT, 1024, 24, **_ROBERTA),
    "distilbart-1-1": _distilbart(1, 1),
    "distilbart-12-1": _distilbart(12, 1),
    "distilbart-6-6": _distilbart(6, 6),
    "distilbart-12-3": _distilbart(12, 3),
    "distilbart-9-6": _distilbart(9, 6),
    "distilbart-12-6": _distilbart(12, 6),
    "distilbert-multilingual": _encoder(
        transformers.DistilBertForSequenceClassification, TOKENS_LANGUAGE, 768, 6, vocab_size=119_547, num_labels=20
    ),
    "xlm-roberta-base": _encoder(
        transformers.XLMRobertaForSequenceClassification,
        TOKENS_LANGUAGE,
        768,
        12,
        **{**_ROBERTA, "vocab_size": 250_002, "num_labels": 20},
    ),
    "opus-mt": _marian(512, 59_514),
    "opus-mt-big": _marian(1024, 53_017),
}
"""Every architecture that a pipeline file may name."""
