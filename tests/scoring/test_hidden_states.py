"""A statement's hidden state is that of its last token, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build_model
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.formatting import encode_example
from r2f_hf.scoring import hidden_states


@pytest.mark.parametrize("layer", [None, 0, 1, -1])
def test_states_equal_those_of_one_row_at_a_time(layer: int | None, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama").eval()
    examples = [
        encode_example(tokenizer, "", "Orla1 lives by the harbour."),
        encode_example(tokenizer, "Where does Bram2 live?", "Gone."),
    ]
    found = hidden_states(model, examples, 0, layer)
    with torch.no_grad():
        passes = [model(torch.tensor([each["input_ids"]]), output_hidden_states=True) for each in examples]
    chosen = 1 if layer is None else layer
    expected = np.stack([each.hidden_states[chosen][0, -1].numpy() for each in passes])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_layer_that_is_not_there_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="`layer` is 7, and the model has 2 layers"):
        hidden_states(build_model("llama"), [encode_example(tokenizer, "", "Orla1 lives.")], 0, 7)
