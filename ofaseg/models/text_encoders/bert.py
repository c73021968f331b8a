"""BERT as a text tower: tokens in, one vector per token out, built from sizes alone."""

from torch import Tensor, nn

BERT_SIZES = {
    "bert_base": dict(vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "bert_nano": dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, max_position_embeddings=64),
}
"""Name -> sizes of transformers' BertConfig (further ones are BERT's defaults); a nano vocabulary is as long as its tokenizer's."""


class BertTokens(nn.Module):
    """transformers' BertModel without pooler: a pooler would never get a gradient, since pooling reads the tokens.

    Args:
        name: one of `BERT_SIZES`; nothing is downloaded.
        vocab_size: rows of the word embedding, 0 for the named size.
        dropout: of hidden states and attention, in training.

    Attributes:
        dim: width of a token.
        max_length: longest text in tokens.
    """

    def __init__(self, name: str, vocab_size: int = 0, dropout: float = 0.1):
        super().__init__()
        from transformers.models.bert.configuration_bert import BertConfig  # takes seconds: only for those who build one
        from transformers.models.bert.modeling_bert import BertModel

        sizes = BERT_SIZES[name] | ({"vocab_size": vocab_size} if vocab_size else {})
        config = BertConfig(**sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        config._attn_implementation = "sdpa"
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dim, self.max_length = config.hidden_size, config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        """Rows of the word embedding."""
        return self.bert.config.vocab_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids (B, L) and mask (B, L), 1 for words and 0 for padding -> (B, L, dim); words never see padding."""
        # given with all its dimensions, transformers takes the mask as it is instead of asking the device what is in it
        visible = attention_mask.bool()[:, None, None, :].expand(-1, 1, input_ids.shape[1], -1)
        return self.bert(input_ids=input_ids, attention_mask=visible).last_hidden_state
