"""The numbers of the LLM-SRec paper (Kim et al., "Lost in Sequence", KDD 2025) that ours are printed beside.

Its data are Amazon 2023's and its candidates one positive and 99 random negatives: orderings and changes can be
compared with ours, sizes cannot. By this project's names of systems.
"""

MAIN = ("Movies", "Scientific", "Electronics", "CDs")
ORDER = ("Scientific", "Electronics", "CDs")

# Table 6: NDCG@10.
NDCG = {
    "teacher": (0.3459, 0.2918, 0.2267, 0.3451),  # SASRec
    "a-llmrec": (0.3263, 0.2875, 0.2791, 0.3119),
    "llm-srec": (0.3560, 0.3388, 0.3044, 0.3809),
}
# Table 8: NDCG@10.
ABLATION = {
    "LLM-SRec": (0.3560, 0.3388, 0.3044, 0.3809),
    "w/o L_uniform": (0.3339, 0.3283, 0.2895, 0.3622),
    "w/o L_distil, L_uniform": (0.3204, 0.3088, 0.2659, 0.2278),
}
# Table 3: per cent by which NDCG@10 changes with training on shuffled histories.
TRAINED_SHUFFLED = {
    "teacher": (-7.88, -7.19, -4.03),
    "a-llmrec": (3.41, -1.79, -1.31),
    "llm-srec": (-4.84, -6.77, -5.11),
}
# Table 4: HR@1 after training on true and on shuffled histories.
TRAINED_SHUFFLED_HITS = {
    "teacher": ((0.3171, 0.2821), (0.2390, 0.2158), (0.3662, 0.3386)),
    "a-llmrec": ((0.2804, 0.2796), (0.2672, 0.2684), (0.3319, 0.3528)),
}
# Table 5: the cosine of a user's vectors by the true and by a shuffled history.
COSINE = {
    "teacher": (0.6535, 0.7375, 0.7083, 0.7454),
    "a-llmrec": (0.8872, 0.8911, 0.8623, 0.8706),
    "llm-srec": (0.6128, 0.7852, 0.7393, 0.8589),
}
# Table 9, Scientific: minutes of an epoch and of inference.
MINUTES = {"a-llmrec": (190.94, 35.01), "llm-srec": (185.91, 34.17)}
