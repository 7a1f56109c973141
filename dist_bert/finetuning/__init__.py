"""Tasks on labelled text: classes, scores, tags and answers, from files to predictions.

Not for: the loop itself (`dist_bert.training`).
Others mostly use `finetune.finetune`, `predict.FineTunedModel` and `task.Task`.
"""
