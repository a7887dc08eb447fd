"""Pages of results"""
