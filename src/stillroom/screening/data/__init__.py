"""Readers of drug-target data: the gold standard, affinity sets, exports of databases, tables of one's own."""
