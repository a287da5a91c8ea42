"""The peer of `scripts.bench.classifier`: scikit-learn's TF-IDF and logistic regression.

    PYTHON -m scripts.bench.peer_sklearn     # requests of `scripts.bench.generate_engine` on stdin
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from scripts.bench.generate_engine import serve

FEATURES = {"words": dict(analyzer="word", ngram_range=(1, 2)),
            "chars": dict(analyzer="char_wb", ngram_range=(2, 5))}
COSTS = (0.3, 1.0, 3.0, 10.0, 30.0)     # values of C


class Sklearn:
    """Logistic regression over TF-IDF with logarithmic counts, C chosen on the validation part."""

    def load(self) -> dict[str, Any]:
        """Imports the library; gives its version."""
        import sklearn

        return {"versions": {"scikit-learn": sklearn.__version__}}

    def fit(self, features: str, texts: Sequence[str], positive: Sequence[bool],
            validation: Sequence[str], validation_positive: Sequence[bool]) -> dict[str, Any]:
        """Fits a model for every C and keeps that of the largest area under the curve.

        Args:
            features: one of `FEATURES`.

        Returns:
            `cost` (C), `secs` of all fits, `one_secs` of the features and the kept fit alone.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score

        begun = time.perf_counter()
        self._vectors = TfidfVectorizer(sublinear_tf=True, **FEATURES[features])
        train = self._vectors.fit_transform(texts)
        features_secs = time.perf_counter() - begun
        held, best = self._vectors.transform(validation), -1.0
        for cost in COSTS:
            fit_begun = time.perf_counter()
            model = LogisticRegression(C=cost, max_iter=1000).fit(train, positive)
            secs = time.perf_counter() - fit_begun
            area = roc_auc_score(validation_positive, model.predict_proba(held)[:, 1])
            if area > best:
                best, self._model, chosen = area, model, {
                    "cost": cost, "one_secs": features_secs + secs}
        return chosen | {"secs": time.perf_counter() - begun}

    def score(self, texts: Sequence[str]) -> dict[str, Any]:
        """Probability of the positive class of each text, and the seconds."""
        begun = time.perf_counter()
        scores = self._model.predict_proba(self._vectors.transform(texts))[:, 1].tolist()
        return {"scores": scores, "secs": time.perf_counter() - begun}


if __name__ == "__main__":
    serve(Sklearn())
