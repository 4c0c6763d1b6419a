"""Operations on whole stores: verify, merge, convert, info, pictures."""
