"""IFSeg computed the plain way, step by step as the published code does it: what `tools/benchmark.py` compares with.

Written from the description of the published implementation, for measuring only:
bucket and bias tables are gathered in every layer, the resized ones resized twice even where that changes nothing, biases
are repeated for every sample, attention is matrix products around a float32 softmax with padded keys filled in a copy of
the scores, the encoder hands on a copy of the word embeddings, and scores are upsampled to all pixels, permuted, flattened
and masked before the loss. Left out are the handling of unused targets and the averaged cross-attention maps.
"""

import math
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.models.ifseg import SegOFA

FROZEN = ("encoder.embed_tokens.", "decoder.embed_tokens.", "encoder.seg_embed_tokens.", "decoder.seg_embed_tokens.",
          "decoder.seg_projection.", "encoder.embed_images.", "encoder.image_proj.")  # fmt: skip
"""What the published runs do not train."""


class Encoded(NamedTuple):
    """tokens (T, B, D), positions (B, T, D), padding (B, T), grid (h, w), features (B, F, h, w) of a photo or None, a copy of all words."""

    tokens: Tensor
    positions: Tensor
    padding: Tensor
    grid: tuple[int, int]
    features: Optional[Tensor]
    vocabulary: Tensor


def bag_inputs(class_maps: Tensor, class_token_ids: list[list[int]], pad: int = 1) -> tuple[Tensor, Tensor]:
    """Class maps (B, h, w) as bags of word pieces: ids (B, M) right-padded, and the inclusive running piece count (B, h*w)."""
    samples = [[class_token_ids[k] for k in grid.flatten().tolist()] for grid in class_maps]
    pieces = [[token for cell in cells for token in cell] for cells in samples]
    longest = max(len(row) for row in pieces)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in pieces], device=class_maps.device)
    counts = torch.tensor([[len(cell) for cell in cells] for cells in samples], device=class_maps.device)
    return ids, counts.cumsum(1)


def token_buckets(bucket_size: int, length: int) -> Tensor:
    """(length, length) bucket of every pair of text positions."""
    position = torch.arange(length)
    relative = position[:, None] - position[None, :]
    middle = bucket_size // 2
    size = relative.abs().clamp(min=middle - 1).float()
    logarithmic = torch.ceil(torch.log(size / middle) / math.log(1023 / middle) * (middle - 1)) + middle
    near = relative.abs() <= middle
    return torch.where(near, relative, (torch.sign(relative) * logarithmic).long()) + bucket_size - 1


def grid_buckets(side: int) -> Tensor:
    """(side^2 + 1, side^2 + 1) bucket of every pair of a square grid's cells; cell 0 is the special token."""
    width = 2 * side - 1
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    buckets = torch.empty(side * side + 1, side * side + 1, dtype=torch.long)
    buckets[1:, 1:] = (row[:, None] - row[None, :] + side - 1) * width + column[:, None] - column[None, :] + side - 1
    buckets[0, :], buckets[:, 0], buckets[0, 0] = width * width, width * width + 1, width * width + 2
    return buckets


def resize_axis(bias: Tensor, axis: int, side: int, grid: tuple[int, int]) -> Tensor:
    """Resizes one cell axis (1 or 2) of a bias (H, n, n) from side x side to `grid`; cells before the last side^2 stay."""
    moved = bias.transpose(axis, 2)
    special, cells = moved[..., : moved.shape[2] - side * side], moved[..., moved.shape[2] - side * side :]
    cells = F.interpolate(cells.reshape(*cells.shape[:2], side, side), size=grid, mode="bilinear", align_corners=False)
    return torch.cat([special, cells.flatten(2)], dim=2).transpose(axis, 2).contiguous()


class EagerReference:
    """The published forward pass over the weights of one of our models; tensors share memory, gradients do not.

    Args:
        model: a SegOFA in the published configuration (frozen image encoder and embeddings, causal decoder reading the
            encoder's output).

    Raises:
        ValueError: another configuration.
    """

    def __init__(self, model: SegOFA):
        config = model.config
        if config.train_image_encoder or config.full_context_alignment or str(config.decoder_input_type) != "encoder_output":
            raise ValueError("the reference knows the published configuration only: frozen image encoder, causal decoder, encoder_output")
        self.config, self.training, self.heads = config, False, config.encoder_attention_heads
        self.scale = (config.encoder_embed_dim / self.heads * config.attn_scale_factor) ** -0.5
        self.side = config.orig_patch_image_size // model.grid_stride
        self.seg_side = config.patch_image_size // model.grid_stride
        self.bos, self.pad = model.decoder.bos, model.pad
        self.weights = {}
        for key, value in model.state_dict().items():
            trained = value.is_floating_point() and not key.startswith(FROZEN)
            self.weights[key] = value.detach().requires_grad_(trained)
        device = self.weights["encoder.embed_tokens.weight"].device
        self.token_buckets = token_buckets(config.token_bucket_size, min(config.max_source_positions, 1024)).to(device)
        self.image_buckets = grid_buckets(config.image_bucket_size).to(device)
        self.seg_buckets = grid_buckets(self.seg_side).to(device)

    def train(self, mode: bool = True) -> "EagerReference":
        self.training = mode
        return self

    def parameters(self) -> list[Tensor]:
        return [weight for weight in self.weights.values() if weight.requires_grad]

    # -- small parts -----------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.weights[f"{name}.bias"])

    def dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)

    def drop_path(self, x: Tensor, rate: float) -> Tensor:
        """Drops the branch x (T, B, D) of whole samples."""
        if rate == 0.0 or not self.training:
            return x
        keep = torch.rand(1, x.shape[1], 1, device=x.device).add_(1 - rate).floor_()
        return x / (1 - rate) * keep

    def attention(
        self, name: str, x: Tensor, memory: Tensor, bias: Tensor, causal: Optional[Tensor] = None, padding: Optional[Tensor] = None
    ) -> Tensor:
        """x (T, B, D) over memory (S, B, D) with a bias (B*H, T, S), a mask (T, S) of 0 and -inf, and padding (B, S)."""
        length, batch, dim = x.shape
        query = self.linear(x, f"{name}.q_proj") * self.scale
        query, key, value = (
            part.contiguous().view(-1, batch * self.heads, dim // self.heads).transpose(0, 1)
            for part in (query, self.linear(memory, f"{name}.k_proj"), self.linear(memory, f"{name}.v_proj"))
        )
        scores = torch.bmm(query, key.transpose(1, 2))
        scores += bias
        if causal is not None:
            scores += causal.unsqueeze(0)
        if padding is not None:
            scores = scores.unflatten(0, (batch, self.heads)).masked_fill(padding[:, None, None], float("-inf")).flatten(0, 1)
        probs = F.dropout(torch.softmax(scores.float(), dim=-1).type_as(scores), self.config.attention_dropout, self.training)
        heads = torch.bmm(probs, value).transpose(0, 1).contiguous().view(length, batch, self.heads, -1)
        heads = torch.einsum("tbhd,h->tbhd", heads, self.weights[f"{name}.c_attn"])
        return self.linear(heads.reshape(length, batch, dim), f"{name}.out_proj")

    def feed_forward(self, x: Tensor, name: str, rate: float) -> Tensor:
        hidden = F.gelu(self.linear(self.norm(x, f"{name}.final_layer_norm"), f"{name}.fc1").float()).type_as(x)
        hidden = self.linear(self.norm(hidden, f"{name}.ffn_layernorm"), f"{name}.fc2")
        return x + self.drop_path(self.dropout(hidden), rate)

    def absolute_bias(self, query: Tensor, key: Tensor, name: str) -> Tensor:
        """(B, H, T, S) of position vectors (B, T, D) and (B, S, D)."""
        q = self.linear(query, f"{name}_q_linear").view(*query.shape[:2], self.heads, -1).transpose(1, 2) * self.scale
        k = self.linear(key, f"{name}_k_linear").view(*key.shape[:2], self.heads, -1).transpose(1, 2)
        return torch.matmul(q, k.transpose(2, 3))

    # -- image encoder ---------------------------------------------------------------------------------------------

    def conv(self, x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        """Convolution, then batch normalisation with stored statistics, as two operations."""
        prefix = "encoder.embed_images."
        weight = self.weights[f"{prefix}{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (self.weights[f"{prefix}{norm}.{part}"] for part in parts)
        return F.batch_norm(x, mean, variance, scale, shift, eps=1e-5)

    def image_features(self, photos: Tensor) -> Tensor:
        """Normalised photos (B, 3, H, W) -> (B, F, h, w)."""
        return self.conv_stem(photos) if self.config.image_encoder == "conv_stem" else self.resnet(photos)

    def conv_stem(self, x: Tensor) -> Tensor:
        def block(x, name):
            return F.relu(x + self.conv(F.relu(self.conv(x, f"{name}.conv1", f"{name}.bn1")), f"{name}.conv2", f"{name}.bn2"))

        x = F.relu(self.conv(F.relu(self.conv(x, "conv1", "bn1", 2)), "conv2", "bn2", 2))
        x = F.relu(self.conv(block(x, "block1"), "conv3", "bn3", self.config.conv_stem_stride // 4))
        return block(x, "block2")

    def resnet(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x, "conv1", "bn1", 2)), 3, 2, 1)
        for stage in (1, 2, 3):
            block = 0
            while f"encoder.embed_images.layer{stage}.{block}.conv1.weight" in self.weights:
                name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = F.relu(self.conv(x, f"{name}.conv1", f"{name}.bn1"))
                y = F.relu(self.conv(y, f"{name}.conv2", f"{name}.bn2", stride))
                y = self.conv(y, f"{name}.conv3", f"{name}.bn3")
                x = F.relu(y + (self.conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if block == 0 else x))
                block += 1
        return x

    # -- encoder ---------------------------------------------------------------------------------------------------

    def word_mosaic(self, ids: Tensor, ends: Tensor) -> Tensor:
        """Bags of `bag_inputs` -> mean word embeddings (B, P, D)."""
        batch, patches = ends.shape
        totals = torch.cat([ends.new_zeros(1), ends[:, -1].cumsum(0)[:-1]])
        starts = torch.cat([ends.new_zeros(batch, 1), ends[:, :-1]], dim=1) + totals[:, None]
        cells = F.embedding_bag(ids[ids.ne(self.pad)], self.weights["encoder.embed_tokens.weight"], starts.flatten(), mode="mean")
        return cells.view(batch, patches, -1)

    def image_positions(self, batch: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Position vectors (B, h*w, D) before normalisation, and the ids (B, h*w) that index the relative bias."""
        table, bucket, (h, w) = self.weights["encoder.embed_image_positions.weight"], self.config.image_bucket_size, grid
        resized = h * w > self.side**2
        rows, columns = (self.side, self.side) if resized else grid
        ids = torch.arange(rows, device=table.device)[:, None] * bucket + torch.arange(columns, device=table.device)[None, :] + 1
        ids = ids.flatten().unsqueeze(0).expand(batch, -1)
        vectors = F.embedding(ids, table)
        if resized:
            square = vectors.transpose(1, 2).unflatten(2, (rows, columns))
            vectors = F.interpolate(square, size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        return vectors, ids

    def image_bias(self, layer: int, ids: Tensor, grid: tuple[int, int], mosaic: bool) -> Tensor:
        """(B or 1, H, P, P): looked up per sample for mosaics, resized along keys, then queries, for photos."""
        table, buckets = self.weights[f"encoder.image_rel_pos_table_list.{layer}.weight"], self.image_buckets
        if mosaic:
            batch, patches, size = *ids.shape, len(buckets)
            rows = buckets.expand(batch, size, size).gather(1, ids[:, :, None].expand(batch, patches, size))
            picked = rows.gather(2, ids[:, None, :].expand(batch, patches, patches))
            return F.embedding(picked, table).permute(0, 3, 1, 2)
        square = torch.arange(self.side, device=table.device)
        square = (square[:, None] * self.config.image_bucket_size + square[None, :] + 1).flatten()
        bias = F.embedding(buckets[square][:, square], table).permute(2, 0, 1).contiguous()
        return resize_axis(resize_axis(bias, 2, self.side, grid), 1, self.side, grid).unsqueeze(0)

    def encode(self, src_tokens: Tensor, photos: Optional[Tensor] = None, bags: Optional[tuple[Tensor, Tensor]] = None) -> Encoded:
        """Image tokens of photos (B, 3, H, W) normalised, or of bags (see `bag_inputs`), then the text (B, L)."""
        batch, length = src_tokens.shape
        features, types = None, self.weights["encoder.type_embedding.weight"]
        if photos is not None:
            features = self.image_features(photos)
            grid, patches = tuple(features.shape[2:]), self.linear(features.flatten(2).transpose(1, 2), "encoder.image_proj")
        else:
            patches = self.word_mosaic(*bags)
            grid = (self.side, self.side)
        text = F.embedding(src_tokens, self.weights["encoder.embed_tokens.weight"]) + types[0]
        text = self.dropout(self.norm(text, "encoder.layernorm_embedding"))
        image = self.dropout(self.norm(patches + types[1], "encoder.patch_layernorm_embedding"))
        padding = torch.cat([src_tokens.new_zeros(image.shape[:2]).bool(), src_tokens.eq(self.pad)], dim=1)
        x = (torch.cat([image, text], dim=1) * (1 - padding.unsqueeze(-1).type_as(image))).transpose(0, 1)
        vectors, ids = self.image_positions(batch, grid)
        text_ids = torch.arange(length, device=x.device).unsqueeze(0).expand(batch, -1)
        words = self.norm(F.embedding(text_ids, self.weights["encoder.embed_positions.weight"]), "encoder.pos_ln")
        positions = torch.cat([self.norm(vectors, "encoder.image_pos_ln"), words], dim=1)
        absolute = self.absolute_bias(positions, positions, "encoder.pos")
        patches = grid[0] * grid[1]
        for i in range(self.config.encoder_layers):
            bias = absolute.clone()
            bias[:, :, :patches, :patches] += self.image_bias(i, ids, grid, mosaic=photos is None)
            table = self.weights[f"encoder.token_rel_pos_table_list.{i}.weight"]
            values = F.embedding(self.token_buckets[:length, :length], table).permute(2, 0, 1)
            bias[:, :, patches:, patches:] += values.unsqueeze(0).expand(batch, -1, -1, -1)
            x = self.encoder_layer(i, x, bias.reshape(-1, *bias.shape[2:]), padding)
        vocabulary = self.weights["encoder.embed_tokens.weight"].clone()
        return Encoded(self.norm(x, "encoder.layer_norm"), positions, padding, grid, features, vocabulary)

    def encoder_layer(self, i: int, x: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
        name = f"encoder.layers.{i}"
        rate = self.config.encoder_drop_path_rate * i / max(self.config.encoder_layers - 1, 1)
        y = self.norm(x, f"{name}.self_attn_layer_norm")
        y = self.norm(self.attention(f"{name}.self_attn", y, y, bias, padding=padding), f"{name}.attn_ln")
        return self.feed_forward(x + self.drop_path(self.dropout(y), rate), name, rate)

    # -- decoder ---------------------------------------------------------------------------------------------------

    def seg_positions(self, batch: int, grid: tuple[int, int]) -> Tensor:
        """(B, 1 + h*w, D) normalised: bos, then the position table resized to `grid`."""
        table = self.weights["decoder.embed_seg_positions.weight"]
        square = table[1:].T.reshape(1, -1, self.seg_side, self.seg_side)
        cells = F.interpolate(square, size=grid, mode="bilinear", align_corners=False)[0].flatten(1).T
        return self.norm(torch.cat([table[:1], cells]).unsqueeze(0).expand(batch, -1, -1), "decoder.seg_pos_ln")

    def decode(self, encoded: Encoded) -> Tensor:
        """Class logits (B, h*w + 1, C): the grid, and one more position that nobody reads."""
        grid, memory = encoded.grid, encoded.tokens
        patches, batch = grid[0] * grid[1], memory.shape[1]
        bos = self.weights["decoder.embed_tokens.weight"][self.bos].expand(1, batch, -1)
        x = self.dropout(self.norm(torch.cat([bos, memory[:patches]]), "decoder.layernorm_embedding"))
        positions = self.seg_positions(batch, grid)
        absolute = self.absolute_bias(positions, positions, "decoder.self_pos")
        cross = self.absolute_bias(positions, encoded.positions, "decoder.cross_pos")
        causal = torch.full((len(x), len(x)), float("-inf"), device=x.device).triu(1)
        for i in range(self.config.decoder_layers):
            table = self.weights[f"decoder.seg_rel_pos_table_list.{i}.weight"]
            relative = F.embedding(self.seg_buckets, table).permute(2, 0, 1).contiguous()
            relative = resize_axis(resize_axis(relative, 1, self.seg_side, grid), 2, self.seg_side, grid)
            bias = absolute.clone()
            bias += relative.unsqueeze(0).expand(batch, -1, -1, -1)
            biases = (bias.reshape(-1, *bias.shape[2:]), cross.reshape(-1, *cross.shape[2:]))
            x = self.decoder_layer(i, x, encoded, *biases, causal)
        return F.linear(self.norm(x, "decoder.layer_norm").transpose(0, 1), self.weights["decoder.seg_projection.weight"])

    def decoder_layer(self, i: int, x: Tensor, encoded: Encoded, bias: Tensor, cross: Tensor, causal: Tensor) -> Tensor:
        name = f"decoder.layers.{i}"
        rate = self.config.decoder_drop_path_rate * i / max(self.config.decoder_layers - 1, 1)
        y = self.norm(x, f"{name}.self_attn_layer_norm")
        y = self.norm(self.attention(f"{name}.self_attn", y, y, bias, causal), f"{name}.self_attn_ln")
        x = x + self.drop_path(self.dropout(y), rate)
        y = self.norm(x, f"{name}.encoder_attn_layer_norm")
        y = self.attention(f"{name}.encoder_attn", y, encoded.tokens, cross, padding=encoded.padding)
        x = x + self.drop_path(self.dropout(self.norm(y, f"{name}.cross_attn_ln")), rate)
        return self.feed_forward(x, name, rate)

    # -- passes ----------------------------------------------------------------------------------------------------

    def loss(self, src_tokens: Tensor, target: Tensor, **inputs) -> Tensor:
        """Mean cross-entropy over labelled pixels; target (B, H, W) class ids, C where there is no label."""
        encoded = self.encode(src_tokens, **inputs)
        return pixel_loss(all_pixels(self.decode(encoded), encoded.grid, target.shape[1:]), target)

    @torch.inference_mode()
    def display(self, src_tokens: Tensor, photos: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The pass over real photos that published training adds for its curves: loss and areas (3, C)."""
        encoded = self.encode(src_tokens, photos)
        logits = self.decode(encoded)
        scores = all_pixels(logits, encoded.grid, target.shape[1:])
        stride = target.shape[1] // encoded.grid[0]
        areas(logits[:, :-1].argmax(-1).flatten(), target[:, ::stride, ::stride].flatten(), scores.shape[-1])
        return pixel_loss(scores, target), areas(scores[:, :-1].argmax(-1).flatten(), target.flatten(), scores.shape[-1])

    @torch.inference_mode()
    def validate(self, src_tokens: Tensor, photos: Tensor, label_map: Tensor, topk: int, iterations: int) -> dict[str, Tensor]:
        """One photo (1, 3, H, W) against its label map (H', W'): loss, raw and propagated maps (H', W') and areas (3, C)."""
        encoded = self.encode(src_tokens, photos)
        logits, size = self.decode(encoded), label_map.shape
        scores = all_pixels(logits, encoded.grid, size)
        raw = scores[0, :-1].argmax(-1)
        probs = propagate(logits[0, :-1].softmax(-1), encoded.features[0], topk, iterations)
        propagated = all_pixels(torch.cat([probs, probs[:1]])[None], encoded.grid, size)[0, :-1].argmax(-1)
        classes = scores.shape[-1]
        return {
            "logits": logits, "loss": pixel_loss(scores, label_map[None]), "raw": raw.view(size), "propagated": propagated.view(size),
            "areas": areas(raw, label_map.flatten(), classes), "areas_propagated": areas(propagated, label_map.flatten(), classes),
        }  # fmt: skip

    @torch.inference_mode()
    def predict(self, src_tokens: Tensor, photos: Tensor, size: tuple[int, int], topk: int, iterations: int) -> Tensor:
        """The propagated map (H', W') of one photo alone."""
        encoded = self.encode(src_tokens, photos)
        probs = propagate(self.decode(encoded)[0, :-1].softmax(-1), encoded.features[0], topk, iterations)
        return all_pixels(torch.cat([probs, probs[:1]])[None], encoded.grid, size)[0, :-1].argmax(-1).view(size)


def all_pixels(logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Scores (B, h*w + 1, C) -> (B, H*W + 1, C), bilinear, in float32; the last position is kept."""
    cells, last = logits.float()[:, :-1], logits.float()[:, -1:]
    cells = F.interpolate(cells.transpose(1, 2).unflatten(2, grid), size=tuple(size), mode="bilinear", align_corners=False)
    return torch.cat([cells.permute(0, 2, 3, 1).flatten(1, 2), last], dim=1)


def pixel_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of scores (B, H*W + 1, C) against target (B, H, W), C where there is no label."""
    classes = scores.shape[-1]
    scores, target = scores[:, :-1].reshape(-1, classes), target.flatten()
    keep = target.ne(classes)
    return F.cross_entropy(scores[keep], target[keep])


def propagate(probs: Tensor, features: Tensor, topk: int, iterations: int) -> Tensor:
    """Probabilities (P, C) averaged `iterations` times over the `topk` patches of most similar features (F, h, w)."""
    rows = F.normalize(features.flatten(1).T, dim=-1)
    neighbours = (rows @ rows.T).topk(topk, dim=-1).indices
    for _ in range(iterations):
        probs = probs[neighbours].mean(dim=1)
    return probs


def areas(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """(3, C) areas of intersection, prediction and label, over pixels with a label."""
    keep = target.ne(classes)
    prediction, target = prediction[keep], target[keep]
    parts = (prediction[prediction == target], prediction, target)
    return torch.stack([torch.histc(part.float(), bins=classes, min=0, max=classes - 1) for part in parts])
