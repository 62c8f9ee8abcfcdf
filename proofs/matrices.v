(* Real matrices of any size: positive semidefinite ones and operator norms, then the covariances of theorems 1 to 3 and
   of the family (10), with DDPM and blurs as special cases. laws.v shows whose covariances they are. *)

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

(* What "is a covariance" means. The covariance of a random vector is such a matrix: laws.v, cov_covariance. *)
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
have [k0|k_neq0] := eqVneq (k : R) 0.
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

(* ---- Theorems 1 to 3 ---- *)

Section Matrices.
Variable R : realFieldType.

(* M maps the state at s (size n) to the state at t (size m), S and T are the marginal covariances. *)
Definition transition_cov m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_m := T - M *m S *m M^T.
Definition gain m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_(n, m) := S *m M^T *m invmx T.
Definition posterior_cov m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_n := S - gain M S T *m M *m S.
(* The covariance in its other form, (5), with Q the covariance of the transition. *)
Definition posterior_cov_by_precision m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (Q : 'M[R]_m) : 'M[R]_n :=
  invmx (invmx S + M^T *m invmx Q *m M).

(* (4): a transition between isotropic marginals has a covariance iff no direction would need negative variance. *)
Theorem isotropic_transition m n (M : 'M[R]_(m, n)) (sigma_s sigma_t : R) :
  covariance (transition_cov M (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> forall v, sigma_s ^+ 2 * sqnorm (M^T *m v) <= sigma_t ^+ 2 * sqnorm v.
Proof.
have variance v : quad (transition_cov M (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M) v
    = sigma_t ^+ 2 * sqnorm v - sigma_s ^+ 2 * sqnorm (M^T *m v).
  by rewrite quadB quad_congr !quad_scalar.
split=> [[_ psd_noise] v|bound]; first by rewrite -subr_ge0 -variance.
split=> [|v]; last by rewrite variance subr_ge0.
by apply: symmetricB; [|apply: symmetric_congr]; apply: symmetric_scalar.
Qed.

(* (4) as it is computed: by the operator norm. *)
Theorem isotropic_transition_norm N m n (M : 'M[R]_(m, n)) (sigma_s sigma_t : R) : opnorm N M ->
  covariance (transition_cov M (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> sigma_s ^+ 2 * N ^+ 2 <= sigma_t ^+ 2.
Proof. by move/opnorm_tr/(opnorm_scaled_bound sigma_s sigma_t) <-; apply: isotropic_transition. Qed.

(* s -> t -> u is s -> u: the covariances add up to that of the product. *)
Theorem chain_cov l m n (L : 'M[R]_(l, m)) (M : 'M[R]_(m, n)) S T U :
  L *m transition_cov M S T *m L^T + transition_cov L T U = transition_cov (L *m M) S U.
Proof.
rewrite /transition_cov trmx_mul mulmxBr mulmxBl !mulmxA.
by rewrite addrC addrA subrK.
Qed.

(* If both steps have a covariance, so does the direct one. *)
Corollary chain_covariance l m n (L : 'M[R]_(l, m)) (M : 'M[R]_(m, n)) S T U :
  covariance (transition_cov M S T) -> covariance (transition_cov L T U) ->
  covariance (transition_cov (L *m M) S U).
Proof. by move=> covM covL; rewrite -(chain_cov L M S T U); apply/covarianceD/covL/covariance_congr. Qed.

(* With P = M_1:s onto every state: no other gain A than M carries every mean M_1:s x_0 where M does. *)
Theorem transition_gain_unique p m n (A M : 'M[R]_(m, n)) (P : 'M[R]_(n, p)) P' :
  P *m P' = 1%:M -> (forall x : 'cV[R]_p, A *m (P *m x) = M *m (P *m x)) -> A = M.
Proof.
move=> PP' same; rewrite -[A]mulmx1 -[M]mulmx1 -PP' !mulmxA; congr (_ *m P').
apply/trmx_inj/row_matrixP => i; apply: trmx_inj.
by rewrite !rowE !trmx_mul !trmxK -!mulmxA same.
Qed.

(* (6) in a form that shows it to be a covariance, also where Q is singular. *)
Lemma posterior_cov_sum m n (M : 'M[R]_(m, n)) S T : T \in unitmx -> symmetric S -> symmetric T ->
  let J := 1%:M - gain M S T *m M in
  posterior_cov M S T = J *m S *m J^T + gain M S T *m transition_cov M S T *m (gain M S T)^T.
Proof.
move=> unitT symS symT /=; set K := gain M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have step : (1%:M - K *m M) *m S *m M^T = K *m transition_cov M S T.
  by rewrite /transition_cov mulmxBr KT !mulmxBl mul1mx !mulmxA.
rewrite linearB /= tr_scalar_mx trmx_mul mulmxBr mulmx1 mulmxA step subrK.
by rewrite /posterior_cov -/K mulmxBl mul1mx.
Qed.

Theorem posterior_covariance m n (M : 'M[R]_(m, n)) S T : T \in unitmx ->
  covariance S -> covariance T -> covariance (transition_cov M S T) -> covariance (posterior_cov M S T).
Proof.
move=> unitT covS covT covQ; rewrite (posterior_cov_sum M unitT covS.1 covT.1).
by apply: covarianceD; apply: covariance_congr.
Qed.

(* Where the transition has an invertible covariance, so has the state at t: (6) exists wherever (5) does. *)
Theorem marginal_unit m n (M : 'M[R]_(m, n)) S T :
  covariance S -> covariance (transition_cov M S T) -> transition_cov M S T \in unitmx -> T \in unitmx.
Proof.
move=> covS covQ unitQ; have -> : T = M *m S *m M^T + transition_cov M S T by rewrite addrC subrK.
exact: unitmxD (covariance_congr _ covS) covQ unitQ.
Qed.

(* Theorem 2, (5) = (6). The gain through Q is the gain through T. *)
Lemma gain_by_precision m n (M : 'M[R]_(m, n)) S T :
  T \in unitmx -> transition_cov M S T \in unitmx ->
  posterior_cov M S T *m M^T *m invmx (transition_cov M S T) = gain M S T.
Proof.
move=> unitT unitQ; set K := gain M S T; set Q := transition_cov M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have -> : posterior_cov M S T *m M^T = K *m Q.
  by rewrite /posterior_cov -/K /Q /transition_cov mulmxBr KT mulmxBl !mulmxA.
exact: mulmxK.
Qed.

Theorem posterior_cov_forms_agree m n (M : 'M[R]_(m, n)) S T :
  S \in unitmx -> T \in unitmx -> transition_cov M S T \in unitmx ->
  posterior_cov_by_precision M S (transition_cov M S T) = posterior_cov M S T.
Proof.
move=> unitS unitT unitQ; set Q := transition_cov M S T.
have inverse : posterior_cov M S T *m (invmx S + M^T *m invmx Q *m M) = 1%:M.
  rewrite mulmxDr !mulmxA gain_by_precision // /posterior_cov mulmxBl mulmxV //.
  by rewrite mulmxK // subrK.
have [_ unitL] := mulmx1_unit inverse.
by rewrite /posterior_cov_by_precision -[RHS](mulmxK unitL) inverse mul1mx.
Qed.

(* A noise-free transition leaves no variance along M; (5) does not exist there. *)
Theorem posterior_noise_free m n (M : 'M[R]_(m, n)) S T :
  T \in unitmx -> transition_cov M S T = 0 -> M *m posterior_cov M S T = 0.
Proof.
move=> unitT /eqP; rewrite subr_eq0 => /eqP eqT.
by rewrite /posterior_cov /gain mulmxBr !mulmxA -eqT mulmxV // mul1mx subrr.
Qed.

(* Theorem 3, (7). *)
Lemma isotropic_gain m n (M : 'M[R]_(m, n)) (a b : R) : gain M a%:M b%:M = (a / b) *: M^T.
Proof. by rewrite /gain invmx_scalar mul_scalar_mx -scalemxAl mul_mx_scalar scalerA. Qed.

Theorem isotropic_posterior_cov m n (M : 'M[R]_(m, n)) (a b : R) :
  posterior_cov M a%:M b%:M = a *: (1%:M - (a / b) *: (M^T *m M)).
Proof.
rewrite /posterior_cov isotropic_gain mul_mx_scalar -!scalemxAl scalerBr scalemx1.
by rewrite !scalerA.
Qed.

(* The covariance of the error of a linear estimator with gain K, as a square around the best gain G. *)
Lemma error_cov_square m n (M : 'M[R]_(m, n)) (K G : 'M[R]_(n, m)) S T :
  G *m T = S *m M^T -> T *m G^T = M *m S ->
  S - S *m M^T *m K^T - K *m (M *m S - T *m K^T) = S - G *m M *m S + (K - G) *m T *m (K - G)^T.
Proof.
move=> GT TG; rewrite -GT -(mulmxA G M) -TG [(K - G)^T]linearB /= !mulmxBr !mulmxBl !mulmxA !opprB.
set a := G *m T *m G^T; set b := G *m T *m K^T; set c := K *m T *m G^T; set d := K *m T *m K^T.
by rewrite [d - b + _]addrCA [S - a + _]addrA subrK -!addrA; congr (S + _); rewrite addrCA.
Qed.

(* The joint covariance of (x_s, x_t) built forwards from q(x_s) q(x_t|x_s), and backwards from q(x_t) q(x_s|x_t). *)
Theorem joint_cov_forms_agree m n (M : 'M[R]_(m, n)) S T : T \in unitmx -> symmetric S -> symmetric T ->
  let forwards := block_mx 1%:M 0 M 1%:M in
  let backwards := block_mx 1%:M (gain M S T) 0 1%:M in
  let joint := block_mx S (S *m M^T) (M *m S) T in
  forwards *m block_mx S 0 0 (transition_cov M S T) *m forwards^T = joint
  /\ backwards *m block_mx (posterior_cov M S T) 0 0 T *m backwards^T = joint.
Proof.
move=> unitT symS symT /=; set K := gain M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have TK : T *m K^T = M *m S by rewrite -[T]symT -trmx_mul KT trmx_mul trmxK symS.
rewrite !tr_block_mx !trmx0 !tr_scalar_mx !mulmx_block.
split; congr block_mx; rewrite ?(mul0mx, mulmx0, mul1mx, mulmx1, add0r, addr0) //.
  by rewrite addrC subrK.
by rewrite -mulmxA TK mulmxA subrK.
Qed.

End Matrices.

(* ---- (10): a reverse step with any gain B ---- *)

Section Family.
Variable R : realFieldType.

Definition family_cov m n (B : 'M[R]_(n, m)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_n := S - B *m T *m B^T.

(* Theorem 2 is the member whose gain is the best estimator's. *)
Theorem posterior_in_family m n (M : 'M[R]_(m, n)) S T : T \in unitmx -> symmetric S -> symmetric T ->
  family_cov (gain M S T) S T = posterior_cov M S T.
Proof.
move=> unitT symS symT; rewrite /family_cov /posterior_cov; set K := gain M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have TK : T *m K^T = M *m S by rewrite -{1}symT -trmx_mul KT trmx_mul trmxK symS.
by rewrite -mulmxA TK mulmxA.
Qed.

(* With isotropic noise it is a covariance iff sigma_t^2 B B^T <= sigma_s^2 I ... *)
Theorem family_admissible m n (B : 'M[R]_(n, m)) (sigma_s sigma_t : R) :
  covariance (family_cov B (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> psd ((sigma_s ^+ 2)%:M - sigma_t ^+ 2 *: (B *m B^T)).
Proof.
have -> : sigma_t ^+ 2 *: (B *m B^T) = B *m (sigma_t ^+ 2)%:M *m B^T by rewrite mul_mx_scalar -scalemxAl.
split=> [[]//|psd_cov]; split=> //.
by apply: symmetricB; [|apply: symmetric_congr]; apply: symmetric_scalar.
Qed.

(* ... that is, iff sigma_t |B| <= sigma_s. *)
Theorem family_admissible_norm N m n (B : 'M[R]_(n, m)) (sigma_s sigma_t : R) : opnorm N B ->
  covariance (family_cov B (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> sigma_t ^+ 2 * N ^+ 2 <= sigma_s ^+ 2.
Proof. exact: isotropic_transition_norm. Qed.

End Family.

(* ---- Known processes ---- *)

Section Special.
Variable R : realFieldType.

(* DDPM is M = c I, c^2 = alpha, with variances 1 - alpha bar: its transition has a covariance, and the posterior's
   weights of x_t and of mu_s and its variance are DDPM's. *)
Theorem ddpm n (alpha alpha_bar_s c : R) :
  let beta := 1 - alpha in
  let var_s := 1 - alpha_bar_s in
  let var_t := 1 - alpha * alpha_bar_s in
  let M : 'M[R]_n := c%:M in
  c ^+ 2 = alpha -> alpha <= 1 -> var_t != 0 ->
  [/\ covariance (transition_cov M var_s%:M var_t%:M),
      gain M var_s%:M var_t%:M = (var_s / var_t * c)%:M,
      1%:M - gain M var_s%:M var_t%:M *m M = (beta / var_t)%:M
    & posterior_cov M var_s%:M var_t%:M = (var_s / var_t * beta)%:M].
Proof.
move=> beta var_s var_t M c2 alpha_le1 /eqP var_t_neq0.
have gainE : gain M var_s%:M var_t%:M = (var_s / var_t * c)%:M.
  by rewrite isotropic_gain tr_scalar_mx scale_scalar_mx.
split=> //.
- rewrite /transition_cov tr_scalar_mx -!scalar_mxM -scalar_mxB; split; first exact: tr_scalar_mx.
  by apply: psd_scalar; rewrite mulrAC -expr2 c2 mulrC ddpm_margin subr_ge0.
- by rewrite gainE -scalar_mxM -scalar_mxB -mulrA -expr2 c2 ddpm_weight.
rewrite isotropic_posterior_cov tr_scalar_mx -scalar_mxM scale_scalar_mx -scalar_mxB scale_scalar_mx.
by rewrite -expr2 c2 ddpm_variance.
Qed.

(* Blurs M = V diag(e) V^T with one orthogonal V, such as the DCT-II basis: no two frequencies mix. *)
Section Blur.
Variables (n : nat) (V : 'M[R]_n).
Hypothesis orthogonal : V^T *m V = 1%:M.
Definition blur (e : 'rV[R]_n) : 'M[R]_n := V *m diag_mx e *m V^T.

Lemma blur_tr e : (blur e)^T = blur e.
Proof. by rewrite /blur !trmx_mul trmxK tr_diag_mx mulmxA. Qed.

(* Blurs compose frequency by frequency, so that R_s->u = R_t->u R_s->t wherever the gains multiply. *)
Theorem blur_mul e f : blur e *m blur f = blur (\row_i (e 0 i * f 0 i)).
Proof. by rewrite /blur -!mulmxA (mulmxA V^T) orthogonal mul1mx (mulmxA (diag_mx e)) mulmx_diag. Qed.

Lemma blur_scalar a : a%:M = blur (const_mx a).
Proof. by rewrite /blur diag_const_mx mul_mx_scalar -scalemxAl (mulmx1C orthogonal) scalemx1. Qed.

Lemma blurB e f : blur e - blur f = blur (e - f).
Proof. by rewrite /blur linearB /= mulmxBr mulmxBl. Qed.

Lemma blurZ a e : a *: blur e = blur (a *: e).
Proof. by rewrite /blur linearZ /= -scalemxAr -scalemxAl. Qed.

Theorem blurring_diffusion e (s t : R) :
  [/\ transition_cov (blur e) s%:M t%:M = blur (\row_i (t - s * e 0 i ^+ 2)),
      gain (blur e) s%:M t%:M = blur (\row_i (s / t * e 0 i))
    & posterior_cov (blur e) s%:M t%:M = blur (\row_i (s * (1 - s / t * e 0 i ^+ 2)))].
Proof.
split.
- rewrite /transition_cov blur_tr !blur_scalar !blur_mul blurB; congr blur.
  by apply/rowP => i; rewrite !mxE expr2 mulrA [s * _]mulrC.
- by rewrite isotropic_gain blur_tr blurZ; congr blur; apply/rowP => i; rewrite !mxE.
rewrite isotropic_posterior_cov blur_tr blur_mul blurZ blur_scalar blurB blurZ; congr blur.
by apply/rowP => i; rewrite !mxE expr2.
Qed.

(* The norm of a blur is its largest gain, so (4) is the condition of the frequency kept best. *)
Theorem blur_opnorm (e : 'rV[R]_n) (k : 'I_n) : (forall i, 0 <= e 0 i <= e 0 k) -> opnorm (e 0 k) (blur e).
Proof.
move=> e_max; have e_ge0 i : 0 <= e 0 i by case/andP: (e_max i).
have stretch v : sqnorm (blur e *m v) = \sum_i (e 0 i * (V^T *m v) i 0) ^+ 2.
  rewrite -[blur e]trmxK -quad_gram trmxK blur_tr blur_mul.
  by rewrite quad_congr quad_diag; apply: eq_bigr => i _; rewrite !mxE exprMn expr2.
have isometry v : sqnorm (V^T *m v) = sqnorm v.
  by rewrite sqnorm_mulmx trmxK mulmxA (mulmx1C orthogonal) mul1mx.
split=> // [v|l l_ge0 bound].
  rewrite stretch -(isometry v) sqnormE mulr_sumr; apply: ler_sum => i _.
  by rewrite exprMn ler_wpmul2r ?sqr_ge0 // ler_pexpn2r ?nnegrE //; case/andP: (e_max i).
have := bound (V *m delta_mx k 0); rewrite stretch -(isometry (V *m _)) mulmxA orthogonal mul1mx.
rewrite /sqnorm /dot trmx_delta mul_delta_mx mxE !eqxx mulr1.
rewrite (bigD1 k) //= big1 ?addr0 => [|i /negPf ik]; first by rewrite mxE !eqxx mulr1.
by rewrite mxE ik mulr0 expr0n.
Qed.

End Blur.
End Special.
