"""The text encoder, a small BERT. Paper: Sec. 3.1."""

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from evilm.config.models import EViLMConfig


class TextEncoder(nn.Module):
    """A BERT of 12 layers x 128 by default, without pooler, trained from scratch. Paper: Sec. 4.1, Table 8."""

    def __init__(self, config: EViLMConfig) -> None:
        from transformers.models.bert import BertConfig, BertModel  # takes seconds: import only to build a model

        super().__init__()
        bert = BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.text_dim,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            intermediate_size=4 * config.text_dim,
            max_position_embeddings=config.text_positions,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            # BERT's 0.02 is for width 768; this keeps the gain of a layer the same at our width
            initializer_range=0.02 * (768 / config.text_dim) ** 0.5,
            pad_token_id=None,  # no row of the word table is special: padding is masked out
        )
        bert._attn_implementation = "sdpa"
        self.bert = BertModel(bert, add_pooling_layer=False)

    @property
    def word_table(self) -> Tensor:
        """Return the word embeddings (vocab, text_dim), which the MLM head shares."""
        return self.bert.embeddings.word_embeddings.weight

    def forward(
        self, input_ids: Int64[Tensor, "clip word"], padding: Bool[Tensor, "clip word"]
    ) -> Float[Tensor, "clip word text_dim"]:
        """Return one vector per word piece; `padding` is True at padding."""
        visible = ~padding
        if self.bert.config._attn_implementation == "sdpa":
            # transformers uses a 4-D mask unchanged. With one row per caption it would check on the device for padding,
            # and wait for the result.
            visible = visible[:, None, None, :].expand(-1, 1, padding.shape[1], -1)
        return self.bert(input_ids=input_ids, attention_mask=visible).last_hidden_state
