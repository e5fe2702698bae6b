"""What is asked of the parent beforehand."""

from pathlib import Path

import torch

from blockwright.model.parent import load_model, open_parent
from blockwright.pipeline.distill_answers import AnswersOrder, KeptAnswers
from blockwright.train.ranks import Ranks
from blockwright.train.teacher_cache import CacheOrder
from blockwright.train.windows import Batch


def test_only_answers_to_train_on_are_softened(small_parent: Path, tmp_path: Path) -> None:
    model = load_model(open_parent(str(small_parent)))
    training, held_out = (Batch(ids_BT=torch.arange(8).add(first).view(1, 8)) for first in (3, 20))
    order = AnswersOrder(folder=tmp_path, cache=CacheOrder(k=4, temperature=2.0, origin={}))
    answers = KeptAnswers(order, [training], [held_out])
    answers.fill(model, 1, Ranks.alone())
    assert answers.are_full
    for batch, temperature in ((training, 2.0), (held_out, 1.0)):
        with torch.no_grad():
            log_p = torch.log_softmax(model(batch.ids_BT).logits / temperature, -1).flatten(0, 1)
        top = answers.top_of(batch)
        torch.testing.assert_close(top.log_p_NK.float(), log_p.gather(1, top.ids_NK.long()), atol=4e-3, rtol=0)
        torch.testing.assert_close(top.ids_NK.long().sort().values, log_p.topk(4).indices.sort().values)
