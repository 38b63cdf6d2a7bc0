"""Trains the three checkpoints shipped under models/ on one plain text file.

    python scripts/train_shakespeare.py --text shakespeare.txt --out models

makes `shakespeare-llama` (the target), `shakespeare-diff` (differential attention) and `shakespeare-draft` (a small
model of the same tokenizer, distilled from the target for speculative decoding). `--only NAME` makes one of them; the
draft needs the target to be there already. Needs torch, transformers and tokenizers. Every random choice comes from
--seed; another GPU or torch rounds differently and gives a model alike, not the same bits.
"""

import argparse
import csv
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
TARGET, DRAFT, DIFF = "shakespeare-llama", "shakespeare-draft", "shakespeare-diff"


@dataclass
class Recipe:
    """What one model is and how it is trained."""

    name: str
    config: transformers.PretrainedConfig
    model_class: type
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    dropout: float
    keeps_best: bool = True  # the step of the lowest validation loss, else the last one


def recipe_of(name, args):
    shared = dict(
        vocab_size=args.vocab,
        max_position_embeddings=args.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        attention_dropout=0.0,
    )
    if name == TARGET:
        config = LlamaConfig(hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
                             num_key_value_heads=2, head_dim=64, **shared)
        recipe = Recipe(name, config, LlamaForCausalLM, 900, 16, 1e-3, 0.1, 0.35)
    elif name == DIFF:
        config = DiffLlamaConfig(hidden_size=256, intermediate_size=640, num_hidden_layers=5, num_attention_heads=8,
                                 num_key_value_heads=4, head_dim=32, **shared)
        recipe = Recipe(name, config, DiffLlamaForCausalLM, 1200, 16, 1e-3, 0.1, 0.2)
    else:
        config = LlamaConfig(hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, head_dim=32, **shared)
        recipe = Recipe(name, config, LlamaForCausalLM, 2500, 32, 3e-3, 0.01, 0.0, keeps_best=False)
    recipe.steps = args.steps or recipe.steps
    recipe.batch = args.batch or recipe.batch
    recipe.dropout = recipe.dropout if args.dropout is None else args.dropout
    return recipe


# ---- data ------------------------------------------------------------------------------------------------------------


def split_text(text, fraction=0.9):
    """Training and validation text, cut at the blank line between two speeches."""
    cut = text.index("\n\n", int(len(text) * fraction)) + 2
    return text[:cut], text[cut:]


def train_tokenizer(text, vocab):
    """Byte-level BPE in GPT-2's form: all 256 bytes are in the vocabulary, so that any input has ids."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


class Corpus:
    """Token ids of both splits on the device, and how windows are drawn from them."""

    def __init__(self, path, args):
        train_text, val_text = split_text(Path(path).read_text(encoding="utf-8"))
        self.tokenizer = train_tokenizer(train_text, args.vocab)
        self.context = args.context
        encoded = self.tokenizer.encode(train_text)
        self.train = torch.tensor(encoded.ids, device=args.device)
        self.val = torch.tensor(self.tokenizer.encode(val_text).ids, device=args.device)
        self.val_chars_per_token = len(val_text) / len(self.val)
        starts = [i for i, (at, _) in enumerate(encoded.offsets) if at == 0 or train_text[at - 2 : at] == "\n\n"]
        self.speech_starts = torch.tensor([i for i in starts if i < len(self.train) - self.context - 1])
        self.generator = torch.Generator().manual_seed(args.seed)

    def training_batch(self, rows):
        """[rows, context + 1] ids: half of the rows are an end-of-text token and whole speeches, half start anywhere."""
        anywhere = torch.randint(len(self.train) - self.context - 1, (rows,), generator=self.generator)
        pick = torch.randint(len(self.speech_starts), (rows,), generator=self.generator)
        at_speech = torch.arange(rows) % 2 == 0
        start = torch.where(at_speech, self.speech_starts[pick] - 1, anywhere).clamp_min(0).to(self.train.device)
        ids = self.train[start[:, None] + torch.arange(self.context + 1, device=self.train.device)]
        ids[:, 0] = torch.where(at_speech.to(ids.device), END_OF_TEXT_ID, ids[:, 0])
        return ids

    def validation_windows(self):
        """[windows, context + 1] ids that cover the validation text once; the rest at its end is left out."""
        count = (len(self.val) - 1) // self.context
        return torch.stack([self.val[i * self.context : (i + 1) * self.context + 1] for i in range(count)])


# ---- training --------------------------------------------------------------------------------------------------------


def add_dropout(model, rate):
    """Drops outputs of the embedding and of each block's two branches while training; the saved model has none."""

    def drop(module, _inputs, output):
        return F.dropout(output, rate) if module.training else output

    suffixes = ("embed_tokens", "o_proj", "down_proj")
    return [m.register_forward_hook(drop) for n, m in model.named_modules() if rate > 0 and n.endswith(suffixes)]


def optimizer_of(model, recipe):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=matrices[0].is_cuda)


def learning_rate_at(step, recipe):
    """Linear warm-up over 5 % of the steps, then a cosine down to 2 % of the peak."""
    warmup = max(1, recipe.steps // 20)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def autocast(args):
    return torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.device == "cuda")


def logits_of(model, ids):
    return model(input_ids=ids, use_cache=False).logits.float()


@torch.no_grad()
def validation_loss(model, windows, args):
    """Mean cross-entropy in nats a token over the whole validation text."""
    model.eval()
    total = 0.0
    with autocast(args):
        for chunk in windows.split(8):
            logits = logits_of(model, chunk[:, :-1])
            total += F.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten(), reduction="sum").item()
    model.train()
    return total / windows[:, 1:].numel()


def language_loss(model, corpus, recipe, _step):
    ids = corpus.training_batch(recipe.batch)
    return F.cross_entropy(logits_of(model, ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def fit(recipe, corpus, args, loss_of):
    """Trains and returns (model with the kept step's weights, rows of the loss curve, kept row)."""
    torch.manual_seed(args.seed)
    model = recipe.model_class(recipe.config).to(args.device).train()
    hooks = add_dropout(model, recipe.dropout)
    optimizer = optimizer_of(model, recipe)
    windows = corpus.validation_windows()
    curve, best, best_weights = [], None, None
    running, running_count, began = 0.0, 0, time.time()
    every = max(1, recipe.steps // 40)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, recipe)
        with autocast(args):
            loss = loss_of(model, corpus, recipe, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running, running_count = running + loss.detach(), running_count + 1
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            val = validation_loss(model, windows, args)
            row = {"step": step + 1, "train_loss": round(float(running) / running_count, 4), "val_loss": round(val, 4)}
            curve.append(row)
            running, running_count = 0.0, 0
            print(f"{recipe.name} {row} {time.time() - began:.0f}s", flush=True)
            if best is None or val < best["val_loss"] or not recipe.keeps_best:
                best, best_weights = row, {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best_weights)
    for hook in hooks:
        hook.remove()
    return model.to(torch.bfloat16).eval(), curve, best


# ---- distillation of the draft ---------------------------------------------------------------------------------------


@torch.no_grad()
def sample(model, prompts, new_tokens, temperatures, seed):
    """Continues prompts [rows, n] by new_tokens each; a temperature of 0 means greedy. Returns all the ids."""
    generator = torch.Generator(device=prompts.device).manual_seed(seed)
    ids, cache, feed = prompts, None, prompts
    greedy = temperatures == 0
    for _ in range(new_tokens):
        out = model(input_ids=feed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1].float()
        drawn = torch.multinomial(
            torch.softmax(logits / temperatures.clamp_min(1e-3)[:, None], -1), 1, generator=generator)
        feed = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), drawn)
        ids = torch.cat([ids, feed], 1)
    return ids


class Distillation:
    """The draft learns the target's distribution on the training text and on text that the target wrote itself."""

    def __init__(self, teacher, corpus, args):
        self.teacher = teacher
        rows = args.samples
        prompts = torch.cat([corpus.training_batch(64)[:, :8] for _ in range(math.ceil(rows / 64))])[:rows]
        temperatures = torch.tensor([1.0, 0.7, 1.0, 0.0], device=prompts.device).repeat(math.ceil(rows / 4))[:rows]
        began = time.time()
        self.pool = sample(teacher, prompts, corpus.context - 8, temperatures, args.seed)
        print(f"the target wrote {self.pool.numel()} tokens in {time.time() - began:.0f}s", flush=True)

    def __call__(self, model, corpus, recipe, _step):
        rows = torch.randint(len(self.pool), (recipe.batch * 3 // 4,), generator=corpus.generator)
        own = self.pool[rows.to(self.pool.device)]
        ids = torch.cat([own, corpus.training_batch(recipe.batch - len(rows))[:, : own.shape[1]]])
        with torch.no_grad():
            target = logits_of(self.teacher, ids).log_softmax(-1)
        draft = logits_of(model, ids).log_softmax(-1)
        divergence = (target.exp() * (target - draft)).sum(-1).mean()
        # The chance that a drafted token is rejected is the total variation distance, so it is minimised too.
        rejection = (target.exp() - draft.exp()).abs().sum(-1).mean() / 2
        return divergence + rejection


def tokens_a_step(hits):
    """hits [rows, tokens, depth]: was the token at this place among the branches offered at that depth? Walks each row
    as speculative decoding would: a step yields the accepted depth plus the target's own token."""
    steps = tokens = 0
    for row in hits.tolist():
        at = 0
        while at + len(row[0]) < len(row):
            accepted = 0
            while accepted < len(row[0]) and row[at + accepted][accepted]:
                accepted += 1
            steps, tokens, at = steps + 1, tokens + accepted + 1, at + accepted + 1
    return tokens / max(1, steps)


@torch.no_grad()
def acceptance(target, draft, corpus, args):
    """How well the draft predicts the target: on the validation text, and on greedy and sampled continuations of it."""
    windows = corpus.validation_windows()[:, :-1]
    agree, overlap = [], []
    for chunk in windows.split(8):
        p, q = logits_of(target, chunk).softmax(-1), logits_of(draft, chunk).softmax(-1)
        agree.append((p.argmax(-1) == q.argmax(-1)).float().mean().item())
        overlap.append(torch.minimum(p, q).sum(-1).mean().item())
    result = {"top1_agreement_on_validation_text": sum(agree) / len(agree),
              "probability_overlap_on_validation_text": sum(overlap) / len(overlap)}
    prompt, new = corpus.context // 8, corpus.context // 8
    prompts = corpus.val[: len(corpus.val) // prompt * prompt].view(-1, prompt)[:128]
    for label, temperature in (("greedy", 0.0), ("temperature_0.8", 0.8)):
        ids = sample(target, prompts, new, torch.full((len(prompts),), temperature, device=prompts.device), args.seed)
        ranks = logits_of(draft, ids[:, :-1]).argsort(-1, descending=True)[:, prompt - 1 :, :4]
        wanted = ids[:, prompt:, None]
        for tree, widths in (("chain_4", (1, 1, 1, 1)), ("tree_3_2_1", (3, 2, 1)), ("tree_4_2_2_1", (4, 2, 2, 1))):
            hits = torch.stack([(ranks[..., :w] == wanted).any(-1) for w in widths], -1)
            result[f"tokens_a_step_{label}_{tree}"] = tokens_a_step(hits)
    return {k: round(v, 4) for k, v in result.items()}


# ---- what is written -------------------------------------------------------------------------------------------------


def write_curve(folder, curve):
    """The loss curve as CSV and as a small SVG plot."""
    with open(folder / "loss.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=curve[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve)
    width, height, left, bottom = 640, 320, 50, 40
    top = max(max(r["train_loss"], r["val_loss"]) for r in curve[1:] or curve)
    low = min(min(r["train_loss"], r["val_loss"]) for r in curve)
    x = lambda step: left + (width - left - 10) * step / curve[-1]["step"]
    y = lambda loss: 10 + (height - bottom - 10) * (1 - (min(loss, top) - low) / max(1e-9, top - low))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
             f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>']
    for i in range(6):
        loss = low + (top - low) * i / 5
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" stroke="#ddd"/>'
                     f'<text x="{left - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
        step = round(curve[-1]["step"] * i / 5)
        parts.append(f'<text x="{x(step):.1f}" y="{height - bottom + 18}" text-anchor="middle">{step}</text>')
    for i, (key, colour) in enumerate((("train_loss", "#1f77b4"), ("val_loss", "#d62728"))):
        points = " ".join(f'{x(r["step"]):.1f},{y(r[key]):.1f}' for r in curve)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>'
                     f'<text x="{width - 110}" y="{26 + 16 * i}" fill="{colour}">{key}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">step</text></svg>\n')
    (folder / "loss.svg").write_text("\n".join(parts))


CARD = """# {name}

{what}
{parameters:,} parameters in bfloat16 ({megabytes:.1f} MB), input and output embedding tied, context of {context}
tokens, byte-level BPE of {vocab} tokens (GPT-2's form; `<|endoftext|>` is id 0 and starts a text, but never ends one).
It is here to exercise quire's engine on real text: it writes in the manner of its one source and knows nothing else.

## Data

The "tiny Shakespeare" text (40,000 lines of Shakespeare's plays, 1.1 MB, public domain). The first 90 % ({train_tokens:,}
tokens) are for training, the last 10 % ({val_tokens:,} tokens), cut at a speech, for validation. The tokenizer saw the
training part only. Every other window starts with `<|endoftext|>` at the start of a speech, the others start anywhere.

## Training

```
python scripts/train_shakespeare.py --text tinyshakespeare.txt --out models --only {name} --dropout {dropout} --steps {steps}
```

Seed {seed}, torch {torch}, transformers {transformers}, {device}, {seconds:.0f} s. AdamW (betas 0.9, 0.99, weight decay
{weight_decay}), peak learning rate {learning_rate}, {steps} steps of {batch} x {context} tokens, 5 % warm-up and a cosine to 2 %,
dropout {dropout}, bfloat16 autocast over float32 weights. {how}

## Result

| | loss (nats a token) | nats a character |
|---|---|---|
| validation at step {best_step}, whose weights are kept | {best_val:.4f} | {best_val_char:.4f} |
| validation, the shipped bfloat16 file | {final_val:.4f} | {final_val_char:.4f} |
{extra}
{train_column}

{table}

All rows are in [loss.csv](loss.csv), the plot in [loss.svg](loss.svg).

## Sample

Temperature 0.8, seed {seed}, prompt `ROMEO:`

```
{sample}
```
"""

WHAT = {
    TARGET: "A Llama (6 layers, hidden size 256, 4 query heads and 2 KV heads of 64) that writes passable Shakespeare.",
    DRAFT: "A very small Llama (2 layers, hidden size 128, 4 query heads and 2 KV heads of 32), the draft for "
           "speculative\ndecoding with `shakespeare-llama`.",
    DIFF: "A DiffLlama (differential attention; 5 layers, hidden size 256, 8 query heads and 4 KV heads of 32).",
}
HOW = {
    TARGET: "The weights of the step with the\n"
            "lowest validation loss are kept; steps and dropout are the best of a few tries by the same measure.",
    DIFF: "The weights of the step with the\n"
            "lowest validation loss are kept; steps and dropout are the best of a few tries by the same measure.",
    DRAFT: "Distilled from\n`shakespeare-llama`: the loss is the KL divergence to the target's distribution plus the total "
           "variation distance (the\nchance of a rejection); three quarters of each batch are text that the target wrote "
           "itself ({samples} rows of {context}\ntokens at temperatures 1, 0.7 and 0), one quarter is training text.",
}


NOTE = """
A tree offers the draft's most probable tokens: 3, 2 and 1 children at depths 1, 2 and 3 for `tree 3 2 1`. Tokens a step
count the target's own token too; measured on continuations of 128 validation prompts by the target itself.
"""


def write_card(folder, recipe, corpus, args, facts):
    curve, best, final = facts["curve"], facts["best"], facts["final_val"]
    shown = curve[:: max(1, len(curve) // 10)]
    shown = shown if shown[-1] is curve[-1] else shown + [curve[-1]]
    table = "| step | train | validation |\n|---|---|---|\n" + "\n".join(
        f'| {r["step"]} | {r["train_loss"]:.4f} | {r["val_loss"]:.4f} |' for r in shown)
    distilled = recipe.name == DRAFT
    extra = "\n| measure of the draft | |\n|---|---|\n" + "\n".join(
        f'| {k.replace("_", " ")} | {v} |' for k, v in facts["acceptance"].items()) + "\n" + NOTE if distilled else ""
    (folder / "README.md").write_text(CARD.format(
        name=recipe.name, what=WHAT[recipe.name], parameters=facts["parameters"], context=corpus.context,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6, vocab=args.vocab,
        train_tokens=len(corpus.train), val_tokens=len(corpus.val), seed=args.seed, torch=torch.__version__,
        transformers=transformers.__version__, seconds=facts["seconds"], steps=recipe.steps, batch=recipe.batch,
        device=torch.cuda.get_device_name() if args.device == "cuda" else "CPU", weight_decay=recipe.weight_decay,
        learning_rate=recipe.learning_rate, dropout=recipe.dropout, best_step=best["step"], best_val=best["val_loss"],
        how=HOW[recipe.name].format(samples=args.samples, context=corpus.context), extra=extra, table=table,
        best_val_char=best["val_loss"] / corpus.val_chars_per_token, final_val=final,
        final_val_char=final / corpus.val_chars_per_token, sample=facts["sample"].strip(),
        train_column="The train column is the distillation loss, the validation column cross-entropy on the text."
        if distilled else "Both columns are cross-entropy in nats a token; training loss is with dropout on."))


def make(name, args):
    began = time.time()
    folder = Path(args.out) / name
    corpus, recipe = Corpus(args.text, args), recipe_of(name, args)
    teacher = None
    if name == DRAFT:
        teacher = LlamaForCausalLM.from_pretrained(Path(args.out) / TARGET, dtype=torch.bfloat16).to(args.device).eval()
    loss_of = Distillation(teacher, corpus, args) if teacher else language_loss
    model, curve, best = fit(recipe, corpus, args, loss_of)
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.update(do_sample=True, temperature=0.8)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=corpus.tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT,
                            model_max_length=args.context).save_pretrained(folder)
    prompt = torch.tensor([corpus.tokenizer.encode("ROMEO:").ids], device=args.device)
    text = sample(model, prompt, min(256, corpus.context - 16), torch.tensor([0.8], device=args.device), args.seed)
    facts = {
        "curve": curve, "best": best, "parameters": sum(p.numel() for p in model.parameters()),
        "final_val": validation_loss(model.float(), corpus.validation_windows(), args),
        "sample": corpus.tokenizer.decode(text[0].tolist()),
        "acceptance": acceptance(teacher, model.bfloat16(), corpus, args) if teacher else {},
    }
    facts["seconds"] = time.time() - began
    write_curve(folder, curve)
    write_card(folder, recipe, corpus, args, facts)
    print(json.dumps({"name": name, **{k: v for k, v in facts.items() if k not in ("curve", "sample")}}))
    print(facts["sample"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="the plain text to learn from")
    parser.add_argument("--out", default="models", help="folder that gets one folder a model")
    parser.add_argument("--only", choices=[TARGET, DRAFT, DIFF], help="make this model alone")
    parser.add_argument("--seed", type=int, default=1623)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=1536, help="rows the target writes for the draft")
    parser.add_argument("--steps", type=int, help="instead of the model's own number")
    parser.add_argument("--batch", type=int, help="windows a step, instead of the model's own number")
    parser.add_argument("--dropout", type=float, help="instead of the model's own rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass is not deterministic
    for name in [args.only] if args.only else [TARGET, DIFF, DRAFT]:
        make(name, args)


if __name__ == "__main__":
    sys.exit(main())
