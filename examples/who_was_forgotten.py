"""Who was forgotten, and whose training did it?

python examples/who_was_forgotten.py demo
"""

import sys

import subnet

checkpoint = subnet.open_checkpoint(sys.argv[1])
forgetting = subnet.measure_forgetting(checkpoint.scores)

lost = forgetting.to_frame().query("measure == 'loss_since_start' and metric == 'loss'")
for row in lost.query("language != ''").nlargest(5, "value").itertuples():
    print(f"{row.language}: loss rose by {row.value:.3f} ± {row.stderr:.3f} since the start")

effects = forgetting.effect_matrix("loss")
trained, language = effects.stack().idxmin()
print(f"the worst single effect: training {trained} cost {language} {-effects.min().min():.3f}")
