"""Search: which memories, in which order. Reads, and changes nothing.

    filters.py   what a search or a list is narrowed to, as SQL for both
    metadata.py  conditions on metadata -> one jsonpath
    likeness.py  memories whose vectors are close to those of others
    ranking.py   the call of the ranking function (memories/sql/agentmem_search.sql)

Scores run from 0, and higher is better; docs/decisions/0006 says how they are made.
"""
