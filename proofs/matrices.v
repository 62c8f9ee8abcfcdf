(* Quadratic forms, positive semidefinite matrices and operator norms, for real matrices of any size. *)

From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq fintype bigop.
From mathcomp Require Import order ssralg zmodp ssrnum matrix mxalgebra.
From Coq Require Import Ring Field.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- Numbers ---- *)

Section Scalars.
Variable R : realFieldType.
Implicit Types (a b c d e k q r s t v w : R).

(* Coq's tactics ring and field want plain operations on R: these are the library's, renamed. *)
Definition sadd a b : R := a + b.
Definition smul a b : R := a * b.
Definition sopp a : R := - a.
Definition ssub a b : R := a - b.
Definition sinv a : R := a^-1.
Definition sdiv a b : R := a / b.
Definition szero : R := 0.
Definition sone : R := 1.

Lemma scalar_field : field_theory szero sone sadd smul ssub sopp sdiv sinv eq.
Proof.
split=> //; [split=> // | | ].
- exact: add0r.
- exact: addrC.
- exact: addrA.
- exact: mul1r.
- exact: mulrC.
- exact: mulrA.
- exact: mulrDl.
- exact: subrr.
- by apply/eqP; rewrite oner_eq0.
- by move=> a /eqP a_neq0; apply: mulVf.
Qed.

Add Field scalars_field : scalar_field.

Ltac rename_operations :=
  rewrite ?expr2;
  match goal with |- @eq _ ?a ?b => change (@eq (Num.RealField.sort R) a b) end;
  repeat match goal with
  | |- context [@GRing.add ?V ?x ?y] => change (@GRing.add V x y) with (sadd x y)
  | |- context [@GRing.mul ?V ?x ?y] => change (@GRing.mul V x y) with (smul x y)
  | |- context [@GRing.opp ?V ?x] => change (@GRing.opp V x) with (sopp x)
  | |- context [@GRing.inv ?V ?x] => change (@GRing.inv V x) with (sinv x)
  | |- context [GRing.zero ?V] => change (GRing.zero V) with szero
  | |- context [GRing.one ?V] => change (GRing.one V) with sone
  end.
Ltac scalar_ring := rename_operations; ring.
Ltac scalar_field := rename_operations; field.

(* A parabola through 0 that is nowhere negative is flat there. *)
Lemma parabola_vanishes s c : 0 <= c -> (forall t, 0 <= t * s + t * s + t * t * c) -> s = 0.
Proof.
move=> c_ge0 /(_ (- (s / (c + 1)))); set u := s / (c + 1).
have c1_gt0 : 0 < c + 1 by rewrite ltr_paddl ?ltr01.
have c1_neq0 : c + 1 <> 0 by apply/eqP; rewrite gt_eqF.
have -> : - u * s + - u * s + - u * - u * c = - (u ^+ 2 * (c + 1 + 1)).
  by rewrite /u; scalar_field.
have c2_gt0 : 0 < c + 1 + 1 by rewrite addr_gt0 ?ltr01.
rewrite oppr_ge0 pmulr_lle0 // => u2_le0.
have : u ^+ 2 == 0 by rewrite eq_le u2_le0 sqr_ge0.
by rewrite sqrf_eq0 mulf_eq0 invr_eq0 (gt_eqF c1_gt0) orbF => /eqP.
Qed.

(* The step of bounds_tr that completes a square. *)
Lemma square_bound k v w q : 0 < k -> 0 <= k ^+ 2 * v - (k * w + k * w) + q -> q <= k * w -> w <= k * v.
Proof.
move=> k_gt0 square_ge0 q_le; rewrite -(ler_pmul2l k_gt0) -subr_ge0.
have -> : k * (k * v) - k * w = k ^+ 2 * v - (k * w + k * w) + q + (k * w - q) by scalar_ring.
by rewrite addr_ge0 ?subr_ge0.
Qed.

(* DDPM's coefficients, with a for the signal kept from s to t (alpha) and b for the one kept up to s (alpha bar). *)
Lemma ddpm_variance a b : 1 - a * b <> 0 ->
  (1 - b) * (1 - (1 - b) / (1 - a * b) * a) = (1 - b) / (1 - a * b) * (1 - a).
Proof. by move=> nonzero; scalar_field. Qed.

Lemma ddpm_weight a b : 1 - a * b <> 0 -> 1 - (1 - b) / (1 - a * b) * a = (1 - a) / (1 - a * b).
Proof. by move=> nonzero; scalar_field. Qed.

Lemma ddpm_margin a b : (1 - a * b) - (1 - b) * a = 1 - a.
Proof. by scalar_ring. Qed.

(* One frequency of gain e between variances s and t: the variance by precisions is that of (7). *)
Lemma precision_variance e s t : s <> 0 -> t <> 0 -> t - e * e * s <> 0 ->
  (s^-1 + e * e / (t - e * e * s))^-1 = s * (1 - s / t * (e * e)).
Proof. by move=> s_neq0 t_neq0 noise_neq0; scalar_field; do !split. Qed.

(* The variance that (12) leaves on a mode of singular value d, with s, t for the squared deviations. *)
Lemma eta_variance d e s t : t <> 0 ->
  s - t * (s / t * (1 - e * (1 - s / t * d))) = e * (s * (1 - s / t * d)).
Proof. by move=> t_neq0; scalar_field. Qed.

Lemma kept_variance d s t : t <> 0 -> s - t * (s / t * d) ^+ 2 = s * (1 - s / t * d ^+ 2).
Proof. by move=> t_neq0; scalar_field. Qed.

(* Deviations and ratios at changes of size (noise.v): a and c for the signal scales, b and r for base ratios. *)
Lemma matched_deviation a b c k w : a <> 0 -> a * b * k * (c / a * w) = c * b * (k * w).
Proof. by move=> a_neq0; scalar_field. Qed.

Lemma exact_deviation a b c w : a <> 0 -> a * b * (c / a * w) = c * b * w.
Proof. by move=> a_neq0; scalar_field. Qed.

Lemma best_mode a b c r w d : a <> 0 -> b <> 0 -> c <> 0 -> w <> 0 ->
  c * (r * w) * (c^-1 * (w^-1 * d)) = r / b * (a * b * (a^-1 * d)).
Proof. by move=> a_neq0 b_neq0 c_neq0 w_neq0; scalar_field; do !split. Qed.

End Scalars.

(* ---- Inner products ---- *)

Section Dot.
Variable R : realFieldType.

Definition dot n (x y : 'cV[R]_n) : R := (x^T *m y) 0 0.
Definition sqnorm n (x : 'cV[R]_n) : R := dot x x.

Variables (m n : nat).
Implicit Types (x y z : 'cV[R]_n) (a : R).

Lemma dotC x y : dot x y = dot y x.
Proof. by rewrite /dot -[y^T *m x]trmxK trmx_mul trmxK [RHS]mxE. Qed.

Lemma dotDr x y z : dot x (y + z) = dot x y + dot x z.
Proof. by rewrite /dot mulmxDr mxE. Qed.

Lemma dotDl x y z : dot (x + y) z = dot x z + dot y z.
Proof. by rewrite dotC dotDr !(dotC z). Qed.

Lemma dotZr a x y : dot x (a *: y) = a * dot x y.
Proof. by rewrite /dot -scalemxAr mxE. Qed.

Lemma dotZl a x y : dot (a *: x) y = a * dot x y.
Proof. by rewrite dotC dotZr dotC. Qed.

Lemma dotNr x y : dot x (- y) = - dot x y.
Proof. by rewrite /dot mulmxN mxE. Qed.

Lemma dotx0 x : dot x 0 = 0.
Proof. by rewrite /dot mulmx0 mxE. Qed.

Lemma dot_mulmx (A : 'M[R]_(n, m)) x (y : 'cV[R]_m) : dot x (A *m y) = dot (A^T *m x) y.
Proof. by rewrite /dot trmx_mul trmxK mulmxA. Qed.

Lemma sqnormE x : sqnorm x = \sum_i x i 0 ^+ 2.
Proof. by rewrite /sqnorm /dot mxE; apply: eq_bigr => i _; rewrite mxE expr2. Qed.

Lemma sqnorm_ge0 x : 0 <= sqnorm x.
Proof. by rewrite sqnormE sumr_ge0 // => i _; rewrite sqr_ge0. Qed.

Lemma sqnorm_eq0 x : (sqnorm x == 0) = (x == 0).
Proof.
apply/idP/eqP=> [|->]; last by rewrite /sqnorm dotx0.
rewrite sqnormE psumr_eq0 => [/allP zero|i _]; last exact: sqr_ge0.
apply/colP=> i; rewrite mxE; apply/eqP.
by rewrite -sqrf_eq0; apply: zero; rewrite mem_index_enum.
Qed.

Lemma sqnormZ a x : sqnorm (a *: x) = a ^+ 2 * sqnorm x.
Proof. by rewrite /sqnorm dotZl dotZr mulrA expr2. Qed.

Lemma sqnorm0 : sqnorm (0 : 'cV[R]_n) = 0.
Proof. exact: dotx0. Qed.

Lemma sqnormD x y : sqnorm (x + y) = sqnorm x + (dot x y + dot x y) + sqnorm y.
Proof. by rewrite /sqnorm dotDl !dotDr (dotC y x) !addrA. Qed.

Lemma sqnorm_mulmx (A : 'M[R]_(m, n)) x : sqnorm (A *m x) = dot x (A^T *m (A *m x)).
Proof. by rewrite /sqnorm [RHS]dot_mulmx trmxK. Qed.

End Dot.

(* ---- Positive semidefinite matrices ---- *)

Section Psd.
Variable R : realFieldType.

Definition quad n (A : 'M[R]_n) (v : 'cV[R]_n) : R := (v^T *m A *m v) 0 0.
Definition psd n (A : 'M[R]_n) : Prop := forall v, 0 <= quad A v.
Definition symmetric n (A : 'M[R]_n) : Prop := A^T = A.

(* What "is a covariance" means. The covariance of a random vector is such a matrix: moments.v, cov_covariance. *)
Definition covariance n (A : 'M[R]_n) : Prop := symmetric A /\ psd A.

Lemma quadE n (A : 'M[R]_n) v : quad A v = dot v (A *m v).
Proof. by rewrite /quad /dot mulmxA. Qed.

Lemma quad_scalar n (a : R) (v : 'cV[R]_n) : quad a%:M v = a * sqnorm v.
Proof. by rewrite quadE mul_scalar_mx dotZr. Qed.

Variable n : nat.
Implicit Types (A B : 'M[R]_n) (v w : 'cV[R]_n) (a : R).

Lemma quadD A B v : quad (A + B) v = quad A v + quad B v.
Proof. by rewrite !quadE mulmxDl dotDr. Qed.

Lemma quadB A B v : quad (A - B) v = quad A v - quad B v.
Proof. by rewrite !quadE mulmxBl dotDr dotNr. Qed.

Lemma quadZ a A v : quad (a *: A) v = a * quad A v.
Proof. by rewrite !quadE -scalemxAl dotZr. Qed.

Lemma quad_congr m (A : 'M[R]_m) (B : 'M[R]_(n, m)) v : quad (B *m A *m B^T) v = quad A (B^T *m v).
Proof. by rewrite !quadE -!mulmxA dot_mulmx. Qed.

Lemma quad_gram m (B : 'M[R]_(n, m)) v : quad (B *m B^T) v = sqnorm (B^T *m v).
Proof. by rewrite -{1}[B]mulmx1 quad_congr quad_scalar mul1r. Qed.

Lemma scalar_mxB a b : (a - b)%:M = a%:M - b%:M :> 'M[R]_n.
Proof. exact: raddfB. Qed.

Lemma psd0 : psd (0 : 'M[R]_n).
Proof. by move=> v; rewrite quadE mul0mx dotx0. Qed.

Lemma psd_scalar a : 0 <= a -> psd (a%:M : 'M[R]_n).
Proof. by move=> a_ge0 v; rewrite quad_scalar mulr_ge0 ?sqnorm_ge0. Qed.

Lemma psdD A B : psd A -> psd B -> psd (A + B).
Proof. by move=> psdA psdB v; rewrite quadD addr_ge0. Qed.

Lemma psdZ a A : 0 <= a -> psd A -> psd (a *: A).
Proof. by move=> a_ge0 psdA v; rewrite quadZ mulr_ge0. Qed.

Lemma psd_congr m (A : 'M[R]_m) (B : 'M[R]_(n, m)) : psd A -> psd (B *m A *m B^T).
Proof. by move=> psdA v; rewrite quad_congr. Qed.

Lemma psd_gram m (B : 'M[R]_(n, m)) : psd (B *m B^T).
Proof. by move=> v; rewrite quad_gram sqnorm_ge0. Qed.

Lemma symmetric_scalar a : symmetric (a%:M : 'M[R]_n).
Proof. exact: tr_scalar_mx. Qed.

Lemma symmetricD A B : symmetric A -> symmetric B -> symmetric (A + B).
Proof. by rewrite /symmetric linearD /= => -> ->. Qed.

Lemma symmetricB A B : symmetric A -> symmetric B -> symmetric (A - B).
Proof. by rewrite /symmetric linearB /= => -> ->. Qed.

Lemma symmetricZ a A : symmetric A -> symmetric (a *: A).
Proof. by rewrite /symmetric linearZ /= => ->. Qed.

Lemma symmetric_congr m (A : 'M[R]_m) (B : 'M[R]_(n, m)) : symmetric A -> symmetric (B *m A *m B^T).
Proof. by move=> symA; rewrite /symmetric !trmx_mul trmxK symA mulmxA. Qed.

Lemma symmetric_gram m (B : 'M[R]_(n, m)) : symmetric (B *m B^T).
Proof. by rewrite /symmetric trmx_mul trmxK. Qed.

Lemma covarianceD A B : covariance A -> covariance B -> covariance (A + B).
Proof. by move=> [symA psdA] [symB psdB]; split; [apply: symmetricD | apply: psdD]. Qed.

Lemma covariance_congr m (A : 'M[R]_m) (B : 'M[R]_(n, m)) : covariance A -> covariance (B *m A *m B^T).
Proof. by case=> symA psdA; split; [apply: symmetric_congr | apply: psd_congr]. Qed.

Lemma quad_diag (d : 'rV[R]_n) v : quad (diag_mx d) v = \sum_i d 0 i * v i 0 ^+ 2.
Proof.
rewrite quadE /dot mxE; apply: eq_bigr => i _.
by rewrite mul_diag_mx !mxE mulrCA expr2.
Qed.

Lemma psd_diag (d : 'rV[R]_n) : (forall i, 0 <= d 0 i) -> psd (diag_mx d).
Proof. by move=> d_ge0 v; rewrite quad_diag sumr_ge0 // => i _; rewrite mulr_ge0 ?sqr_ge0. Qed.

Lemma covariance_diag (d : 'rV[R]_n) : (forall i, 0 <= d 0 i) -> covariance (diag_mx d).
Proof. by move=> d_ge0; split; [apply: tr_diag_mx | apply: psd_diag]. Qed.

(* A form that is nowhere negative and zero at v has v in its kernel: else it would fall along A v. *)
Lemma psd_kernel A v : covariance A -> quad A v = 0 -> A *m v = 0.
Proof.
case=> symA psdA zero; apply/eqP; rewrite -sqnorm_eq0; apply/eqP.
set w := A *m v; apply: (parabola_vanishes (psdA w)) => t.
have cross : dot v (A *m w) = sqnorm w by rewrite dot_mulmx symA.
have := psdA (v + t *: w); rewrite quadE mulmxDr -scalemxAr dotDl !dotDr !dotZl !dotZr -!quadE zero add0r.
by rewrite cross mulrA addrA.
Qed.

Lemma unitmx_kernel A : (forall v, A *m v = 0 -> v = 0) -> A \in unitmx.
Proof.
move=> trivial; rewrite -unitmx_tr -row_free_unit; apply: inj_row_free => v vA0.
by rewrite -[v]trmxK [v^T]trivial ?trmx0 // -[A]trmxK -trmx_mul vA0 trmx0.
Qed.

(* A covariance plus an invertible covariance is invertible. *)
Lemma unitmxD A B : covariance A -> covariance B -> B \in unitmx -> A + B \in unitmx.
Proof.
move=> covA covB unitB; apply: unitmx_kernel => v sum0.
have total0 : quad A v + quad B v = 0 by rewrite -quadD quadE sum0 dotx0.
move/eqP: total0; rewrite (paddr_eq0 (covA.2 v) (covB.2 v)) => /andP[_ /eqP quadB0].
by rewrite -[v](mulKmx unitB) (psd_kernel covB quadB0) mulmx0.
Qed.

End Psd.

(* ---- Operator norms ---- *)

Section Norm.
Variable R : realFieldType.
Implicit Types (k l a : R).

(* k bounds the squared stretch of M. *)
Definition bounds k m n (M : 'M[R]_(m, n)) : Prop := forall v, sqnorm (M *m v) <= k * sqnorm v.

(* N is the operator norm of M, its largest singular value: N^2 is the least bound. *)
Definition opnorm N m n (M : 'M[R]_(m, n)) : Prop :=
  [/\ 0 <= N, bounds (N ^+ 2) M & forall k, 0 <= k -> bounds k M -> N ^+ 2 <= k].

Lemma bounds_weaken k l m n (M : 'M[R]_(m, n)) : k <= l -> bounds k M -> bounds l M.
Proof. by move=> le_kl Mk v; rewrite (le_trans (Mk v)) // ler_wpmul2r ?sqnorm_ge0. Qed.

Lemma bounds1 n : bounds 1 (1%:M : 'M[R]_n).
Proof. by move=> v; rewrite mul1mx mul1r. Qed.

Lemma bounds_mul k l m n p (A : 'M[R]_(m, n)) (B : 'M[R]_(n, p)) :
  0 <= k -> bounds k A -> bounds l B -> bounds (k * l) (A *m B).
Proof.
move=> k_ge0 Ak Bl v; rewrite -mulmxA (le_trans (Ak _)) // -mulrA.
exact: ler_wpmul2l (Bl v).
Qed.

Lemma bounds_scale k a m n (M : 'M[R]_(m, n)) : bounds k M -> bounds (a ^+ 2 * k) (a *: M).
Proof. by move=> Mk v; rewrite -scalemxAl sqnormZ -mulrA ler_wpmul2l ?sqr_ge0. Qed.

(* Completing a square: 0 <= |k v - M w|^2 with w = M^T v. *)
Lemma bounds_tr k m n (M : 'M[R]_(m, n)) : 0 <= k -> bounds k M -> bounds k M^T.
Proof.
move=> k_ge0 Mk v; set w := M^T *m v.
have cross : dot v (M *m w) = sqnorm w by rewrite dot_mulmx.
have [k0|k_neq0] := eqVneq k 0.
  have /eqP Mw0 : M *m w == 0.
    by rewrite -sqnorm_eq0 eq_le sqnorm_ge0 (le_trans (Mk w)) // k0 mul0r.
  by rewrite -cross Mw0 dotx0 mulr_ge0 ?sqnorm_ge0.
have k_gt0 : 0 < k by rewrite lt_def k_neq0.
apply: (square_bound k_gt0 _ (Mk w)).
have := sqnorm_ge0 (k *: v - M *m w).
by rewrite sqnormD sqnormZ /sqnorm !dotNr dotZl cross dotC dotNr opprK opprD.
Qed.

Lemma opnorm_tr N m n (M : 'M[R]_(m, n)) : opnorm N M -> opnorm N M^T.
Proof.
case=> N_ge0 MN least; split=> // [|k k_ge0 Mk]; first by apply: bounds_tr; rewrite ?sqr_ge0.
by apply: least => //; rewrite -[M]trmxK; apply: bounds_tr.
Qed.

Lemma opnorm_unique N N' m n (M : 'M[R]_(m, n)) : opnorm N M -> opnorm N' M -> N = N'.
Proof.
case=> N_ge0 MN leastN [N'_ge0 MN' leastN']; apply/eqP.
by rewrite -(eqr_expn2 (ltn0Sn 1)) // eq_le leastN ?leastN' ?sqr_ge0.
Qed.

Lemma opnorm1 n : opnorm 1 (1%:M : 'M[R]_n.+1).
Proof.
split=> [||k _ Mk]; [exact: ler01 | by rewrite expr1n; apply: bounds1|].
pose v : 'cV[R]_n.+1 := delta_mx 0 0.
have v_gt0 : 0 < sqnorm v.
  rewrite lt_def sqnorm_ge0 sqnorm_eq0 andbT; apply/eqP => /matrixP /(_ 0 0) /eqP.
  by rewrite !mxE !eqxx oner_eq0.
by rewrite expr1n -(ler_pmul2r v_gt0) mul1r -[v in sqnorm v <= _]mul1mx.
Qed.

Lemma opnorm_scale a N m n (M : 'M[R]_(m, n)) : 0 <= a -> opnorm N M -> opnorm (a * N) (a *: M).
Proof.
move=> a_ge0 [N_ge0 MN least]; split=> [||k k_ge0 aMk]; first exact: mulr_ge0.
  by rewrite exprMn; apply: bounds_scale.
have [->|a_neq0] := eqVneq a 0; first by rewrite mul0r expr0n.
have a2_gt0 : 0 < a ^+ 2 by rewrite lt_def sqrf_eq0 a_neq0 sqr_ge0.
rewrite exprMn mulrC -ler_pdivl_mulr // least ?divr_ge0 ?sqr_ge0 // => v.
rewrite mulrAC ler_pdivl_mulr // [_ * a ^+ 2]mulrC -sqnormZ scalemxAl.
exact: aMk.
Qed.

(* s^2 |M v|^2 <= t^2 |v|^2 for every v says s^2 |M|^2 <= t^2. *)
Lemma opnorm_scaled_bound N s t m n (M : 'M[R]_(m, n)) : opnorm N M ->
  (forall v, s ^+ 2 * sqnorm (M *m v) <= t ^+ 2 * sqnorm v) <-> s ^+ 2 * N ^+ 2 <= t ^+ 2.
Proof.
case=> N_ge0 MN least; split=> [bound|le_st v]; last first.
  rewrite (le_trans (ler_wpmul2l (sqr_ge0 s) (MN v))) // mulrA.
  by rewrite ler_wpmul2r ?sqnorm_ge0.
have [->|s_neq0] := eqVneq s 0; first by rewrite expr0n mul0r sqr_ge0.
have s2_gt0 : 0 < s ^+ 2 by rewrite lt_def sqrf_eq0 s_neq0 sqr_ge0.
rewrite mulrC -ler_pdivl_mulr // least ?divr_ge0 ?sqr_ge0 // => v.
by rewrite mulrAC ler_pdivl_mulr // [_ * s ^+ 2]mulrC.
Qed.

(* A unit vector that M stretches by exactly N, and its image: the pair of singular vectors of the mode kept best. *)
Definition top_mode N m n (M : 'M[R]_(m, n)) (u : 'cV[R]_m) (v : 'cV[R]_n) : Prop :=
  [/\ sqnorm u = 1, sqnorm v = 1, M *m v = N *: u & M^T *m u = N *: v].

End Norm.
