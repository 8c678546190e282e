"""How good a field is: compared with the truth and with the baselines, by metric and region.

The doors are `score.score`, `baselines.baseline_fields`, `score_table.score_table` and the pictures of `plots`.
"""
