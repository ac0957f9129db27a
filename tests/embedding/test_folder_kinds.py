"""Every kind of model folder that sentence-transformers reads gives the vectors that it gives."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import vocabulary, write_json
from safetensors.numpy import load_file, save_file

from ai_model_optimizations import EmbeddingModel

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

HIDDEN = 32
TEXTS = [
    "read the file", "a list of values (3, 4)", "", "x", "time " * 60, "A Server, in a TEST.",
    "Über naïve Çocuk ÇİĞ Ω Σίσυφος", "[CLS] the [MASK] file", "日本語 テキスト 한국어",
]  # fmt: skip


def word_piece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(vocabulary(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return wrapped(tokenizer, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def unigram(words: int = 300) -> Any:
    """Like XLM-R's, with `words` pieces; sentences' ends are pieces of the model."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁"]
    pieces += [chr(code) for code in range(33, 127)]
    pieces += [f"▁{word}" for word in ("the", "file", "read", "list", "server", "test", "of")]
    pieces += [f"▁word{i}" for i in range(words - len(pieces) - 1)] + ["<mask>"]
    scores = [0.0 if i < 4 else -2.0 - i % 17 for i in range(len(pieces))]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )  # fmt: skip
    return wrapped(tokenizer, "<pad>", "<unk>", "<s>", "</s>", "<mask>")


def byte_pairs() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("f", "i"), ("l", "e"), ("fi", "le")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, *map("".join, merges)]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return wrapped(tokenizer, "<pad>", "<unk>", "<s>", "</s>", "<mask>")


def wrapped(tokenizer: Any, pad: str, unk: str, cls: str, sep: str, mask: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unk, cls_token=cls, sep_token=sep,
        mask_token=mask, model_max_length=40,
    )  # fmt: skip


def save_bert(path: Path, tokenizer: Any, **config: Any) -> Path:
    """A folder as transformers writes it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = dict(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_attention_heads=2,
        num_hidden_layers=2, intermediate_size=48, max_position_embeddings=40,
    )  # fmt: skip
    bert = BertModel(BertConfig(**(sizes | config)))
    with torch.no_grad():
        for name, parameter in bert.named_parameters():
            if "word_embeddings" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    bert.eval().save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))
    return path


def save_model(path: Path, *after: Any, bert: Path | None = None, **options: Any) -> Any:
    """A folder as sentence-transformers writes it: these modules after a transformer."""
    from sentence_transformers import SentenceTransformer, models

    plain = bert or save_bert(path.parent / f"{path.name}-bert", word_piece())
    modules = [models.Transformer(str(plain)), *after]
    model = SentenceTransformer(modules=modules, device="cpu", **options)
    model.save(str(path))
    return model


def load_theirs(path: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu")


def check_same(path: Path, theirs: Any = None, **options: Any) -> EmbeddingModel:
    """Compare in f32, and in f16 for what is stored in 16 bits."""
    theirs = theirs or load_theirs(path)
    expected = np.stack([np.asarray(theirs.encode(text, **options)) for text in TEXTS])
    ours = EmbeddingModel.load(path, dtype="f32", on_truncate="ignore")
    # reduction: sums over two layers and 40 tokens in f32.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours.encode(TEXTS, **options), expected, atol=2e-5 * scale)
    half = EmbeddingModel.load(path, dtype="f16", on_truncate="ignore").encode(TEXTS, **options)
    np.testing.assert_allclose(half, expected, atol=5e-3 * scale)
    return ours


def pooling(modes: Any, **options: Any) -> Any:
    from sentence_transformers import models

    return models.Pooling(HIDDEN, pooling_mode=modes, **options)


@pytest.mark.parametrize(
    "modes",
    [
        "mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken",
        ("mean", "max"), ("lasttoken", "cls", "weightedmean"),
        ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
    ],
    ids=str,
)  # fmt: skip
def test_every_pooling(tmp_path: Path, modes: Any) -> None:
    theirs = save_model(tmp_path / "model", pooling(modes))
    ours = check_same(tmp_path / "model", theirs)
    assert ours.dimension == HIDDEN * (1 if isinstance(modes, str) else len(modes))


def test_older_pooling_keys_are_concatenated_in_their_fixed_order(tmp_path: Path) -> None:
    save_model(tmp_path / "model", pooling("mean"))
    config = {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}
    config |= {"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}
    write_json(tmp_path / "model" / "1_Pooling" / "config.json", config)
    assert check_same(tmp_path / "model").dimension == 3 * HIDDEN


@pytest.mark.parametrize("activation", ["Identity", "Tanh", "ReLU", "GELU", "SiLU"])
def test_dense_modules(tmp_path: Path, activation: str) -> None:
    from sentence_transformers import models

    torch.manual_seed(1)
    first = models.Dense(2 * HIDDEN, 50, activation_function=getattr(torch.nn, activation)())
    second = models.Dense(50, 24, bias=False, activation_function=torch.nn.Identity())
    after = (pooling(("mean", "max")), first, second, models.Normalize())
    theirs = save_model(tmp_path / "model", *after)
    ours = check_same(tmp_path / "model", theirs)
    assert ours.dimension == 24 and ours.normalizes
    together = ours.encode(TEXTS)
    np.testing.assert_array_equal(together, np.stack([ours.encode(text) for text in TEXTS]))


@pytest.mark.parametrize("default", [None, "query"])
def test_prompts(tmp_path: Path, default: str | None) -> None:
    theirs = save_model(
        tmp_path / "model",
        pooling("mean"),
        prompts={"query": "read: ", "passage": "the list of "},
        default_prompt_name=default,
    )
    ours = check_same(tmp_path / "model", theirs)
    assert ours.prompts == theirs.prompts and ours.default_prompt_name == default
    check_same(tmp_path / "model", theirs, prompt_name="passage")
    check_same(tmp_path / "model", theirs, prompt="write ")
    check_same(tmp_path / "model", theirs, prompt="")
    for name in ("encode_query", "encode_document"):
        expected = getattr(theirs, name)(TEXTS)
        np.testing.assert_allclose(getattr(ours, name)(TEXTS), expected, atol=1e-4)
    with pytest.raises(ValueError, match="prompt_name: the model has no prompt 'other', only"):
        ours.encode(TEXTS, prompt_name="other")
    with pytest.raises(TypeError, match="prompt: expected str, got int"):
        ours.encode(TEXTS, prompt=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["mean", "weightedmean", "cls", "max", "lasttoken"])
def test_prompts_that_pooling_leaves_out(tmp_path: Path, mode: str) -> None:
    prompts = {"query": "read the list: "}
    theirs = save_model(
        tmp_path / "model", pooling(mode, include_prompt=False), prompts=prompts
    )
    ours = check_same(tmp_path / "model", theirs, prompt_name="query")
    if mode != "lasttoken":
        with_prompt = ours.encode(TEXTS, prompt_name="query")
        assert not np.allclose(with_prompt, ours.encode(["read the list: " + t for t in TEXTS]))


def test_truncated_dimensions(tmp_path: Path) -> None:
    from sentence_transformers import models

    theirs = save_model(tmp_path / "model", pooling("mean"))
    check_same(tmp_path / "model", theirs, truncate_dim=7)
    check_same(tmp_path / "model", theirs, truncate_dim=HIDDEN, normalize_embeddings=True)
    theirs = save_model(tmp_path / "unit", pooling("mean"), models.Normalize())
    # sentence-transformers leaves the beginning of a unit vector as it is; here it is one again.
    check_same(tmp_path / "unit", theirs, truncate_dim=7, normalize_embeddings=True)
    ours = EmbeddingModel.load(tmp_path / "unit", dtype="f32", truncate_dim=7)
    assert ours.dimension == 7
    vectors = ours.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    whole = EmbeddingModel.load(tmp_path / "unit", dtype="f32")
    assert whole._encoder is ours._encoder and whole.space_id != ours.space_id
    np.testing.assert_array_equal(whole.encode(TEXTS, truncate_dim=7), vectors)
    for wrong in (0, -1, HIDDEN + 1, 2.5):
        with pytest.raises(ValueError, match="truncate_dim: expected 1 to 32, got"):
            whole.encode(TEXTS, truncate_dim=wrong)  # type: ignore[arg-type]


def test_dimension_that_the_folder_asks_for(tmp_path: Path) -> None:
    theirs = save_model(tmp_path / "model", pooling("mean"), truncate_dim=9)
    assert check_same(tmp_path / "model", theirs).dimension == 9


def test_sharded_weights(tmp_path: Path) -> None:
    from transformers import BertModel

    theirs = save_model(tmp_path / "model", pooling("mean"))
    folder = tmp_path / "model"
    BertModel.from_pretrained(str(folder)).save_pretrained(str(folder), max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    whole = EmbeddingModel.load(shutil.copytree(folder, tmp_path / "copy"), dtype="f32")
    assert check_same(folder, theirs).space_id == whole.space_id


def rename(change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(str(folder / "model.safetensors"))
        renamed = {change(name): tensor for name, tensor in tensors.items()}
        save_file(renamed, str(folder / "model.safetensors"), {"format": "pt"})

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"bert.{name}",
        lambda name: f"encoder.{name}",
        lambda name: f"0.auto_model.{name}",
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    ],
    ids=["bert", "encoder", "auto_model", "gamma and beta"],
)
def test_tensor_names(tmp_path: Path, change: Callable[[str], str]) -> None:
    theirs = save_model(tmp_path / "model", pooling("mean"))
    rename(change)(tmp_path / "model")
    check_same(tmp_path / "model", theirs)


def test_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    theirs = save_model(tmp_path / "model", pooling("mean"))
    folder = tmp_path / "model"
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in list(folder.iterdir()):
        if file.is_file() and file.name not in (
            "modules.json", "config_sentence_transformers.json", "README.md",
        ):  # fmt: skip
            file.rename(inner / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(folder / "modules.json", modules)
    check_same(folder, theirs)


@pytest.mark.parametrize("heads", [False, True], ids=["model", "with a head"])
def test_plain_transformers_folder(tmp_path: Path, heads: bool) -> None:
    folder = save_bert(tmp_path / "plain", word_piece())
    if heads:
        from transformers import BertConfig, BertForPreTraining

        BertForPreTraining(BertConfig.from_pretrained(str(folder))).save_pretrained(str(folder))
    ours = check_same(folder)
    assert not ours.normalizes and ours.max_seq_length == 40


@pytest.mark.parametrize("make", [word_piece, unigram, byte_pairs])
@pytest.mark.parametrize("types", [1, 2])
def test_tokenizers_and_token_types(tmp_path: Path, make: Callable[[], Any], types: int) -> None:
    bert = save_bert(tmp_path / "bert", make(), type_vocab_size=types)
    theirs = save_model(tmp_path / "model", pooling("mean"), bert=bert)
    check_same(tmp_path / "model", theirs)


def test_a_quarter_of_a_million_words(tmp_path: Path) -> None:
    """The shape of paraphrase-multilingual-MiniLM-L12-v2: Unigram pieces on BERT's weights."""
    bert = save_bert(
        tmp_path / "bert", unigram(250_037), num_hidden_layers=1, hidden_size=16,
        intermediate_size=16,
    )  # fmt: skip
    ours = EmbeddingModel.load(bert, dtype="f16", on_truncate="ignore")
    theirs = load_theirs(bert)
    texts = ["read the file of word249000", "word17 word200123", *TEXTS]
    expected = np.asarray(theirs.encode(texts))
    np.testing.assert_allclose(ours.encode(texts), expected, atol=5e-3 * np.abs(expected).max())


def test_lower_casing(tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer = word_piece()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=False, strip_accents=False
    )
    bert = save_bert(tmp_path / "bert", tokenizer)
    plain = save_model(tmp_path / "plain", pooling("mean"), bert=bert)
    folder = Path(shutil.copytree(tmp_path / "plain", tmp_path / "lower"))
    config = json.loads((folder / "sentence_bert_config.json").read_text())
    write_json(folder / "sentence_bert_config.json", config | {"do_lower_case": True})
    lower = check_same(folder)
    same_case = check_same(tmp_path / "plain", plain)
    assert not np.allclose(lower.encode("A LIST"), same_case.encode("A LIST"))
    assert lower.space_id != same_case.space_id
